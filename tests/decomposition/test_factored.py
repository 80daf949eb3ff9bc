"""A sum of products computes what the array would, values and gradients, whichever product is taken first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective.scenes import jit, normal, uniform

from vpd.decomposition import Components, Factored, SiteMask, dense, masked_site
from vpd.decomposition.factored import plus, scaled, selected

few = settings(max_examples=4, deadline=None, derandomize=True)
LEADING = (2, 3)


def terms_of(ranks: list[int], d: int, leading: tuple[int, ...] = LEADING, key: int = 0) -> Factored:
    return Factored(tuple((normal(*leading, r, key=key + i), normal(r, d, key=key + i)) for i, r in enumerate(ranks)))


def near(got, want) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(np.asarray(y)).max()))


def formed(x: Factored) -> jax.Array:
    """The array, in the plainest way."""
    return sum(jnp.einsum("...r,rd->...d", z, B) for z, B in x.terms)


def value_and_gradients(function, *given):
    return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(dense(function(*a)))), argnums=tuple(range(len(given))))(
        *given
    )


@few
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 99))
def test_arithmetic_is_that_of_the_arrays(ranks: list[int], d: int, key: int) -> None:
    x, y = terms_of(ranks, d, key=key), terms_of(ranks[::-1], d, key=key + 50)
    factor, where = uniform(*LEADING, 1, key=key), jnp.asarray(np.random.default_rng(key).random(LEADING) < 0.5)
    assert x.shape == formed(x).shape
    pairs = [
        (plus, lambda x, y: formed(x) + formed(y)),
        (lambda x, y: scaled(x, factor), lambda x, y: formed(x) * factor),
        (lambda x, y: selected(where, x, y), lambda x, y: jnp.where(where[..., None], formed(x), formed(y))),
        (lambda x, y: plus(x, formed(y)), lambda x, y: formed(x) + formed(y)),
        (lambda x, y: selected(where, formed(x), y), lambda x, y: jnp.where(where[..., None], formed(x), formed(y))),
    ]
    got, want = jit(lambda x, y: [[value_and_gradients(f, x, y) for f in side] for side in zip(*pairs, strict=True)])(
        x, y
    )
    near(got, want)
    assert all(isinstance(f(x, y), Factored) for f, _ in pairs[:3])
    assert not any(isinstance(f(x, y), Factored) for f, _ in pairs[3:])


@pytest.mark.parametrize(
    ("ranks", "d", "m", "positions", "forms_the_array"),
    [((1, 2), 40, 3, 50, False), ((3,), 30, 20, 60, False), ((8, 8), 4, 2, 3, True), ((5,), 3, 9, 2, True)],
)
def test_both_orders_of_a_product(ranks, d: int, m: int, positions: int, forms_the_array: bool) -> None:
    x, W = terms_of(list(ranks), d, (positions,)), normal(d, m, key=5) / d
    sides = (lambda x, W: x @ W, lambda x, W: formed(x) @ W)
    near(*jit(lambda x, W: [value_and_gradients(f, x, W) for f in sides])(x, W))
    # The array [positions, d] is made in one order alone.
    shapes = [v.aval.shape for e in jax.make_jaxpr(lambda x, W: x @ W)(x, W).eqns for v in e.outvars]
    assert ((positions, d) in shapes) == forms_the_array


@few
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1,), (2, 1), (4, 4)]),
    st.integers(0, 9),
)
def test_a_masked_site_of_products_is_that_of_the_array(
    with_delta: bool, with_routing: bool, with_bias: bool, factored: bool, ranks: tuple[int, ...], key: int
) -> None:
    d, m, C = 4, 3, 2
    x, W = terms_of(list(ranks), d, key=key), normal(d, m, key=key)
    c, bias = Components(normal(d, C, key=key), normal(C, m, key=key)), normal(m, key=key) if with_bias else None
    delta = uniform(*LEADING, key=key) if with_delta else None
    routing = jnp.asarray(np.random.default_rng(key).random(LEADING) < 0.5) if with_routing else None
    component = uniform(*LEADING, C, key=key)

    def ours(x, c, component):
        return masked_site(x, W, c, SiteMask(component, delta, routing), bias, factored=factored)

    def plain(x, c, component):
        inner, x = formed(x) @ c.V, formed(x)
        y = (inner * component) @ c.U
        y = y if delta is None else y + delta[..., None] * (x @ (W - c.V @ c.U))
        y = y if routing is None else jnp.where(routing[..., None], y, x @ W)
        return y if bias is None else y + bias

    near(*jit(lambda *given: [value_and_gradients(f, *given) for f in (ours, plain)])(x, c, component))
    assert isinstance(ours(x, c, component), Factored) == factored
