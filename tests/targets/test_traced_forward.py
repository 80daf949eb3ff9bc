"""A traced network computes what the function computes: clean, with edited weights, in values and in gradients."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_models import CASES, Case

from vpd.decomposition import ComponentSet, Site, SiteMask, init_components, unstacked
from vpd.targets import clean_forward, frozen_weights, masked_forward
from vpd.targets.layers import layers_of
from vpd.training.build import cut_for, stacked_sites

ATOL = 2e-5
# Tests compile far longer than they compute.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def sites_of(target, cut_at: int | None = None) -> tuple[Site, ...]:
    """All sites, stacked; those of one layer may have another C, which cuts the stacks."""
    flat = [
        Site(name, d_in, d_out, 5 if cut_at is not None and f".{cut_at}." in name else 4, kind)
        for name, (d_in, d_out, kind) in target.matrices().items()
    ]
    return stacked_sites(flat, layers_of(target))


def constant_masks(sites: tuple[Site, ...]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """For each site a mask and a delta that are the same at all positions, not at all matrices of a stack."""
    keys = jax.random.split(jax.random.key(3), len(sites))
    return {
        site.name: (jax.random.uniform(key, (*site.stack, site.C)), jax.random.uniform(key, site.stack))
        for site, key in zip(sites, keys, strict=True)
    }


def spread(site: Site, inputs: dict[str, jax.Array], mask: jax.Array, delta: jax.Array) -> SiteMask:
    """The same mask at every position of the captured input."""
    x = inputs[site.name]
    positions = x.shape[len(site.stack) :] if site.kind == "embedding" else x.shape[len(site.stack) : -1]
    axes = tuple(range(len(site.stack), len(site.stack) + len(positions)))
    return SiteMask(
        jnp.broadcast_to(jnp.expand_dims(mask, axes), (*site.stack, *positions, site.C)),
        jnp.broadcast_to(jnp.expand_dims(delta, axes), (*site.stack, *positions)),
    )


def test_the_clean_output_is_the_functions(case: Case) -> None:
    target = case.target()
    clean, _ = jit(clean_forward)(target, case.batch)
    np.testing.assert_allclose(clean, eqx.filter_jit(case.forward)(case.params, case.batch), atol=1e-6)


def test_weights_are_those_of_the_parameters(case: Case) -> None:
    target = case.target()
    weights = jit(frozen_weights)(target, case.batch)
    assert {n: w.shape for n, w in weights.items()} == {n: (a, b) for n, (a, b, _) in target.matrices().items()}
    # What the sites hold is all that the edit of a model writes.
    rewritten = case.forward(case.edited(case.params, weights), case.batch)
    np.testing.assert_allclose(rewritten, case.forward(case.params, case.batch), atol=1e-6)


@pytest.mark.parametrize("cut_at", [None, 1])
def test_masks_that_are_constant_over_positions_are_another_weight(case: Case, cut_at: int | None) -> None:
    compare_with_another_weight(case, cut_at)


def compare_with_another_weight(case: Case, cut_at: int | None = None) -> None:
    """``((x V) ∘ m) U + δ x Δ = x W'`` with ``W' = δ W + V diag(m − δ) U``, in values and gradients."""
    target = case.target()
    sites = sites_of(target, cut_at)
    target = cut_for(target, sites)
    components = init_components(sites, jax.random.key(1))
    weights = jit(partial(frozen_weights, sites=sites))(target, case.batch)
    _, inputs = clean_forward(target, case.batch, sites)
    masks = constant_masks(sites)
    weigh = jax.random.normal(jax.random.key(4), clean_forward(target, case.batch)[0].shape)

    def masked(components: ComponentSet, masks: dict) -> jax.Array:
        ready = {site.name: spread(site, inputs, *masks[site.name]) for site in sites}
        return masked_forward(target, components, case.batch, ready)

    def edited(components: ComponentSet, masks: dict) -> jax.Array:
        W: dict[str, jax.Array] = {}
        for site in sites:
            (m, delta), pieces = masks[site.name], components[site.name]
            scaled = pieces.V * (m - delta[..., None])[..., None, :]
            W[site.name] = delta[..., None, None] * weights[site.name] + scaled @ pieces.U
        return case.forward(case.edited(case.params, unstacked(W, sites)), case.batch)

    def both(function):
        value = function(components, masks)
        gradients = jax.grad(lambda *given: jnp.sum(weigh * function(*given)), (0, 1))(components, masks)
        return value, gradients

    got, expected = jit(partial(both, masked))(), jit(partial(both, edited))()
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=ATOL * max(1.0, scale))
