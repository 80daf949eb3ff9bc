"""The sparsity losses and faithfulness against NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective.scenes import chain, components_of, jit, normal, sites_of, uniform

from vpd.decomposition import Components, ComponentSet, Site, Span
from vpd.objective import ImportanceMinimality, SmoothL0, anneal, faithfulness_loss
from vpd.objective.minimality import Anneal, Frequency

UPPER = {"a": uniform(4, 6, 3), "b": uniform(4, 6, 5)}
N = 24
few = settings(max_examples=20, deadline=None, derandomize=True)


def s64(upper: dict, f) -> dict[str, np.ndarray]:
    return {s: f(np.asarray(x, np.float64)).sum((0, 1)) for s, x in upper.items()}


@few
@given(p=st.floats(0.3, 3.0), beta=st.floats(0.0, 2.0), eps=st.sampled_from([1e-12, 1e-6, 0.1]))
def test_the_power_penalty(p: float, beta: float, eps: float) -> None:
    penalty = ImportanceMinimality(Anneal(p), beta, eps)
    loss, plain = penalty.loss(penalty.sums(UPPER, 0.5), N)
    S = s64(UPPER, lambda x: (x + eps) ** p)
    np.testing.assert_allclose(loss, sum((x / N * (1 + beta * np.log2(1 + x))).sum() for x in S.values()), rtol=1e-5)
    np.testing.assert_allclose(plain, sum(x.sum() / N for x in S.values()), rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_special_powers_are_the_generic_ones(p: float) -> None:
    """In value and gradient, and the same as a traced power."""
    special, generic = ImportanceMinimality(Anneal(p), 0.5, 1e-3), ImportanceMinimality(Anneal(p, p, 0.0), 0.5, 1e-3)

    @jit
    def run(upper, fraction):
        return [
            jax.value_and_grad(lambda u, q=penalty: q.loss(q.sums(u, fraction), N)[0])(upper)
            for penalty in (special, generic)
        ]

    (x, g), (y, h) = run(UPPER, np.float32(0.5))
    np.testing.assert_allclose(x, y, rtol=1e-5)
    for s in UPPER:
        np.testing.assert_allclose(g[s], h[s], rtol=1e-4)


def test_sums_are_over_the_global_batch() -> None:
    """Sums of two halves add up to the whole; losses of two halves don't average to it where β is on."""
    penalty = ImportanceMinimality(Anneal(1.5), 0.7)
    halves = [{s: x[i : i + 2] for s, x in UPPER.items()} for i in (0, 2)]
    whole, *parts = (penalty.sums(u, 0.0) for u in (UPPER, *halves))
    together = {s: parts[0][s] + parts[1][s] for s in whole}
    want, plain = penalty.loss(whole, N)
    np.testing.assert_allclose(penalty.loss(together, N)[0], want, rtol=1e-5)
    averaged = [np.mean([penalty.loss(p, N // 2)[i] for p in parts]) for i in (0, 1)]
    np.testing.assert_allclose(averaged[1], plain, rtol=1e-5)
    assert abs(averaged[0] - want) > 0.1 * (want - plain)


@few
@given(gamma=st.floats(0.05, 2.0), beta=st.floats(0.0, 2.0), coeff=st.floats(0.0, 2.0), a=st.floats(0.1, 1e5))
def test_smooth_l0(gamma: float, beta: float, coeff: float, a: float) -> None:
    S = s64(UPPER, lambda x: x**2 / (x**2 + gamma**2))
    plain = sum(x.sum() / N for x in S.values())
    with_beta = sum((x / N * (1 + beta * np.log2(1 + x))).sum() for x in S.values())
    rare = coeff * sum((x / N * np.log2(1 + a * x / N)).sum() for x in S.values())
    for frequency, want in ((None, with_beta), (Frequency(coeff, a), with_beta + rare)):
        penalty = SmoothL0(Anneal(gamma), beta, frequency)
        loss, free = penalty.loss(penalty.sums(UPPER, 0.3), N)
        np.testing.assert_allclose([loss, free], [want, plain], rtol=1e-5)


def test_importances_of_zero_have_finite_gradients() -> None:
    zero = {"a": jnp.zeros((2, 3))}
    for penalty in (ImportanceMinimality(Anneal(2.0, 0.4, 0.0), 0.5), SmoothL0(Anneal(0.1), 0.5, Frequency(1.0, 10.0))):
        for fraction in (0.0, 1.0):
            gradient = jit(jax.grad(lambda u, q=penalty, f=fraction: q.loss(q.sums(u, f), 2)[0]))(zero)
            assert np.isfinite(gradient["a"]).all()


def test_bfloat16_importances_are_summed_in_float32() -> None:
    upper = {"a": jnp.asarray(np.full((4096, 1), 0.5), jnp.bfloat16)}
    for penalty, want in ((ImportanceMinimality(Anneal(1.0), 0.0), 2048.0), (SmoothL0(Anneal(0.5), 0.0), 2048.0)):
        S = penalty.sums(upper, 0.0)["a"]
        assert S.dtype == jnp.float32
        np.testing.assert_allclose(S, [want], rtol=1e-5)


@few
@given(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0, 0.9), st.floats(0.01, 1), st.floats(0, 1))
def test_annealing_is_linear_between_its_fractions(
    start: float, final: float, begin: float, width: float, at: float
) -> None:
    end = begin + width
    want = np.interp(at, [begin, end], [start, final])
    np.testing.assert_allclose(anneal(Anneal(start, final, begin, end), at), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(anneal(Anneal(start, final, begin, end), jnp.float32(at)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [Anneal(2.0), Anneal(2.0, None, 0.0), Anneal(2.0, 0.4), Anneal(2.0, 0.4, 1.0)])
def test_annealing_that_is_off(spec: Anneal) -> None:
    assert spec.constant and anneal(spec, 1.0) == 2.0 and anneal(spec, 0.5) == 2.0


def test_faithfulness_is_the_squared_delta_per_weight() -> None:
    target = chain()
    sites = sites_of(target)
    components = components_of(sites)
    weights = {"embed": target.embed, "fc1": target.fc1, "fc2": target.fc2}
    W = {s: np.asarray(w, np.float64) for s, w in weights.items()} | {"fc1.pre_identity": np.eye(4)}
    deltas = [W[s.name] - np.asarray(components[s.name].V) @ components[s.name].U for s in sites]
    want = sum((d**2).sum() for d in deltas) / sum(d.size for d in deltas)
    np.testing.assert_allclose(faithfulness_loss(sites, weights, components), want, rtol=1e-5)
    only = faithfulness_loss(sites[2:3], weights, components)
    np.testing.assert_allclose(only, (deltas[2] ** 2).mean(), rtol=1e-5)


def test_a_perfect_factorisation_is_faithful() -> None:
    sites = sites_of(chain())[2:3]
    components = components_of(sites)
    exact = {"fc1": components["fc1"].V @ components["fc1"].U}
    assert faithfulness_loss(sites, exact, components) == 0
    assert faithfulness_loss(sites, {"fc1": normal(4, 5)}, components) > 0.1


def test_more_weights_than_an_int32_counts() -> None:
    """The MLPs of a model of 8B parameters."""
    site = Site("h.0-31.up", 4096, 14336, 8, span=Span("h", 0, 32))
    sites = (site, replace(site, name="h.0-31.gate"))

    def loss() -> jax.Array:
        pieces = Components(jnp.zeros((32, 4096, 8)), jnp.zeros((32, 8, 14336)))
        weights = dict.fromkeys([s.name for s in sites], jnp.zeros((32, 4096, 14336)))
        return faithfulness_loss(sites, weights, ComponentSet({s.name: pieces for s in sites}))

    found = jax.eval_shape(loss)
    assert found.shape == () and found.dtype == jnp.float32
