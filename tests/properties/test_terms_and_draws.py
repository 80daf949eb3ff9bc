"""What a term is made of, and what its draws depend on: nothing but seed, step and its own name."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import (
    LOSSES,
    TARGETS,
    grid_term,
    importances_of,
    jit,
    pd_of,
    scene_of,
    stored_of,
    tms,
    uniform,
)

from vpd.config.targets import FeatureData
from vpd.data.build import feature_batches, sequence_batches
from vpd.decomposition import Site, SiteMask, init_components
from vpd.importance import CausalImportances
from vpd.objective import recon, recon_loss, total_loss
from vpd.objective.build import terms_from
from vpd.objective.total import persistent_terms
from vpd.targets import frozen_weights, masked_forward
from vpd.training.build import init_state, problem_from


@pytest.mark.parametrize("name", TARGETS)
def test_masks_1_and_delta_1_give_the_target(name: str) -> None:
    """With every identity inserted, wherever positions are routed; without the delta they don't."""
    make, leading = TARGETS[name]
    scene = scene_of(make(), leading, identities=True)
    rng = np.random.default_rng(0)
    routes = {s.name: jnp.asarray(rng.random(leading) < 0.5) for s in scene.sites}

    @jit
    def run(scene, routes):
        def out(delta: bool, routed: bool) -> jax.Array:
            masks = {
                s.name: SiteMask(
                    jnp.ones((*leading, s.C)), jnp.ones(leading) if delta else None, routes[s.name] if routed else None
                )
                for s in scene.sites
            }
            return masked_forward(scene.target, scene.components, scene.batch, masks)

        return out(True, False), out(True, True), out(False, False)

    everywhere, routed, without = run(scene, routes)
    size = max(1.0, float(np.abs(scene.clean).max()))
    for got in (everywhere, routed):
        np.testing.assert_allclose(got, scene.clean, rtol=1e-5, atol=1e-5 * size)
    assert np.abs(np.asarray(without) - scene.clean).max() > 0.01


# Each layerwise class and the one that it is the single-site mean of.
LAYERWISE = {
    "CIMaskedReconLayerwiseLoss": "CIMaskedReconLoss",
    "StochasticReconLayerwiseLoss": "StochasticReconLoss",
    "PGDReconLayerwiseLoss": "PGDReconLoss",
}


def test_there_is_no_other_layerwise_class() -> None:
    assert {name for name in LOSSES if "Layerwise" in name} == set(LAYERWISE)


@pytest.mark.parametrize("target", ["tms-id", "resid"])
@pytest.mark.parametrize("name", LAYERWISE)
def test_a_layerwise_term_is_the_mean_of_its_single_site_terms(name: str, target: str) -> None:
    make, leading = TARGETS[target]
    scene = scene_of(make(), leading)
    ci = importances_of(scene)
    drawn = {s.name: uniform(*leading, s.C + 1, key=20 + i) for i, s in enumerate(scene.sites)}
    layerwise, whole = grid_term(name, scene), grid_term(LAYERWISE[name], scene)

    def draw(sampling, group, scene, key):
        return {s.name: drawn[s.name] for s in group}

    def start(init, shapes, key, group):
        return {s: drawn[s].reshape(shape) for s, shape in shapes.items()}

    @jit
    def run(key):
        with mock.patch.object(recon, "_draw", draw), mock.patch.object(recon, "_start", start):
            singles = [recon_loss(whole, replace(scene, sites=(s,)), {s.name: ci[s.name]}, key) for s in scene.sites]
            return recon_loss(layerwise, scene, ci, key), singles

    got, singles = run(jax.random.key(0))
    assert min(map(float, singles)) > 0 and len({float(x) for x in singles}) == len(scene.sites)
    np.testing.assert_allclose(got, np.mean(singles), rtol=1e-5)


RANDOM = [
    "StochasticReconLoss",
    "StochasticReconSubsetLoss",
    "ChunkwiseSubsetReconLoss",
    "PGDReconSubsetLoss",
    "PersistentPGDReconSubsetLoss",
    "MergedStochasticPersistentReconLoss",
]


def test_a_term_draws_the_same_alone_in_company_and_in_any_order() -> None:
    scene = scene_of(tms(1))
    ci, weights = importances_of(scene), frozen_weights(scene.target, scene.batch)
    pd = pd_of([{"type": name, "coeff": 1.0} | LOSSES[name] for name in RANDOM], sampling="binomial")
    terms, both = terms_from(pd, False), CausalImportances(ci, ci)
    stored = {name: stored_of(scene) for name in persistent_terms(terms)}

    @jit
    def run(step, seed):
        def logs(terms):
            return total_loss(terms, scene, scene.components, weights, both, stored, step, pd.steps, seed)[1]

        alone = {term.name: logs((term,))[term.name] for term in terms}
        return alone, logs(terms), logs(terms[::-1])

    alone, together, backwards = run(np.int32(1), np.int32(2))
    assert set(alone) == set(together) == set(RANDOM)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(backwards[name], value, rtol=1e-6, err_msg=name)
    # And all of them draw afresh at another step, and with another seed.
    for other in (run(np.int32(2), np.int32(2))[0], run(np.int32(1), np.int32(3))[0]):
        assert all(abs(other[name] - value) > 1e-7 for name, value in alone.items())


def test_another_term_changes_no_first_value() -> None:
    sites = (Site("linear1", 4, 3, C=5), Site("linear2", 3, 4, C=5))
    persistent = {"coeff": 1.0} | LOSSES["PersistentPGDReconLoss"]
    one = [{"type": "PersistentPGDReconLoss"} | persistent]
    more = [{"type": "FaithfulnessLoss", "coeff": 1.0}, {"type": "PersistentPGDReconSubsetLoss"} | persistent, *one]

    def start(losses: list[dict]):
        pd = pd_of(losses, seed=4)
        return jax.jit(lambda: init_state(problem_from(pd, sites, False), pd, (), (5,)))()

    small, large = start(one), start(more)
    for x, y in zip(*(jax.tree.leaves(s.decomposition) for s in (small, large)), strict=True):
        np.testing.assert_array_equal(x, y)
    same, other = large.training.adversaries["PersistentPGDReconLoss"], small.training.adversaries
    for site, x in other["PersistentPGDReconLoss"].sources.items():
        np.testing.assert_array_equal(same.sources[site], x)
        assert not np.array_equal(large.training.adversaries["PersistentPGDReconSubsetLoss"].sources[site], x)


def test_sites_after_another_change_none_of_its_draws_and_sites_before_it_do() -> None:
    """V, U and stochastic sources of a site are drawn with its position among the decomposed ones."""
    scene = scene_of(tms(1))
    first, middle, last = scene.sites
    key = jax.random.key(0)

    def drawn(sites: tuple[Site, ...]) -> tuple:
        sources = recon._draw("continuous", sites, replace(scene, sites=sites), key)
        return init_components(sites, key).owned[middle.name].V, sources[middle.name]

    whole, no_last, no_first = drawn((first, middle, last)), drawn((first, middle)), drawn((middle, last))
    for x, same, other in zip(whole, no_last, no_first, strict=True):
        np.testing.assert_array_equal(x, same)
        assert not np.array_equal(x, other)


def test_a_batch_is_a_function_of_seed_step_and_stream_alone() -> None:
    features = {n: feature_batches(FeatureData(feature_probability=0.5), 5, 6, n) for n in ("train", "eval")}
    tokens = {n: sequence_batches(9, 8, 6, n) for n in ("train", "eval")}
    for draws in (features, tokens):
        call = {name: jit(draw) for name, draw in draws.items()}
        forwards = [np.asarray(call["train"](np.int32(0), np.int32(t))) for t in range(4)]
        backwards = [np.asarray(call["train"](np.int32(0), np.int32(t))) for t in reversed(range(4))][::-1]
        np.testing.assert_array_equal(forwards, backwards)
        scanned = jit(lambda n, draw=draws["train"]: jax.lax.map(lambda i: draw(0, i), n))(np.arange(4, dtype=np.int32))
        np.testing.assert_array_equal(forwards, scanned)
        others = [*forwards[1:], call["train"](np.int32(1), np.int32(0)), call["eval"](np.int32(0), np.int32(0))]
        assert not any(np.array_equal(forwards[0], x) for x in others)
