"""Draws of sources: their range, their independence, and what they are functions of."""

import jax
import numpy as np
import pytest
from objective.scenes import chain, grid_term, importances_of, jit, scene_of

from vpd.objective import ReconTerm
from vpd.objective.recon import Stochastic, recon_forwards
from vpd.randomness import stream


@pytest.fixture(scope="module")
def drawn():
    """Sources ``{sampling: [{site: [3, 4, C + 1]} per forward]}`` of (seed, step, stream)."""
    scene = scene_of(chain(), (6, 8))
    ci = importances_of(scene)

    @jit
    def draw(seed, step):
        return {
            (sampling, name): [
                s
                for s, _ in recon_forwards(
                    ReconTerm(name, 1.0, Stochastic(sampling), n_samples=2), scene, ci, stream(seed, name, step), None
                )
            ]
            for sampling in ("continuous", "binomial")
            for name in ("one", "two")
        }

    return draw


def test_ranges(drawn) -> None:
    draws = drawn(np.int32(0), np.int32(0))
    for source in draws["continuous", "one"][0].values():
        assert source.shape[:2] == (6, 8) and np.min(source) >= 0 and np.max(source) <= 1
        assert len(np.unique(source)) > 0.99 * source.size
    for source in draws["binomial", "one"][0].values():
        components, delta = np.asarray(source[..., :-1]), np.asarray(source[..., -1])
        assert set(np.unique(components)) == {0.0, 1.0}
        assert abs(components.mean() - 0.5) < 4 * 0.5 / components.size**0.5
        assert len(np.unique(delta)) == delta.size and delta.min() >= 0 and delta.max() <= 1
    together = np.concatenate([np.ravel(x) for forward in draws["continuous", "one"] for x in forward.values()])
    np.testing.assert_allclose([together.mean(), together.std()], [0.5, 12**-0.5], rtol=0.06)


def test_draws_differ_over_sitesrecon_forwards_steps_seeds_and_streams(drawn) -> None:
    first, again = drawn(np.int32(0), np.int32(0)), drawn(np.int32(0), np.int32(0))
    one = first["continuous", "one"]
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)
    others = [
        one[1],
        first["continuous", "two"][0],
        drawn(np.int32(0), np.int32(1))["continuous", "one"][0],
        drawn(np.int32(1), np.int32(0))["continuous", "one"][0],
    ]
    columns = [np.ravel(x["fc1"]) for x in (one[0], *others)]
    # The same number of draws from two sites.
    columns += [np.ravel(one[0][site])[: columns[0].size] for site in ("fc1.pre_identity", "fc2")]
    shortest = min(c.size for c in columns)
    correlations = np.corrcoef([c[:shortest] for c in columns]) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / shortest**0.5


def test_the_sampling_of_the_run_reaches_every_stochastic_class() -> None:
    scene = scene_of(chain(), (3, 4))
    for name in ("StochasticReconLoss", "ChunkwiseSubsetReconLoss", "StochasticHiddenActsReconLoss"):
        assert grid_term(name, scene).source == Stochastic("continuous")


def test_routing_is_drawn_afresh_for_each_forward() -> None:
    scene = scene_of(chain(), (6, 8))
    term = grid_term("StochasticReconSubsetLoss", scene)
    routes = jit(lambda key: [r for _, r in recon_forwards(term, scene, importances_of(scene), key, None)])
    first, second = routes(jax.random.key(0))
    for site in scene.sites:
        assert (np.asarray(first[site.name]) != second[site.name]).mean() > 0.2


def test_streams_are_functions_of_their_name_seed_and_step() -> None:
    keys = {
        tuple(np.ravel(jax.random.key_data(stream(seed, name, step))).tolist())
        for seed in (0, 1)
        for name in ("a", "b", "ab")
        for step in (0, 1)
    }
    assert len(keys) == 12
    traced = jax.jit(lambda seed, step: jax.random.key_data(stream(seed, "a", step)))(np.int32(1), np.int32(1))
    np.testing.assert_array_equal(traced, jax.random.key_data(stream(1, "a", 1)))
