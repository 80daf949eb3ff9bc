"""How sources ascend, where they stay, and when they rest."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import STORED, chain, grid_term, importances_of, jit, pd_of, scene_of, sites_of, stored_of, tms

from vpd.decomposition import AllRouting
from vpd.importance import CausalImportances
from vpd.objective import (
    AdamAscent,
    AdversaryState,
    FreshPGD,
    Persistent,
    ReconTerm,
    Schedule,
    SignAscent,
    ascend,
    effective_sources,
    init_adversary,
    warm_up_adversaries,
)
from vpd.objective.adversary import source_shapes
from vpd.objective.build import terms_from
from vpd.objective.recon import forward_divergence, fresh_pgd, persistent_loss
from vpd.objective.schedule import first_active_step

EVERYWHERE = {"linear1": None, "linear2": None}


def state_of(sources: dict, adam: bool = True) -> AdversaryState:
    zeros = {s: jnp.asarray(np.zeros_like(x)) for s, x in sources.items()} if adam else {}
    return AdversaryState(sources, zeros, dict(zeros), jnp.zeros((), jnp.int32))


def bounded(sources: dict) -> bool:
    return all(np.min(x) >= 0 and np.max(x) <= 1 for x in sources.values())


def test_an_ascent_raises_the_loss() -> None:
    scene = scene_of(tms())
    ci = importances_of(scene)
    ways = [(optimizer, sigmoid) for optimizer in (AdamAscent(0.5, 0.99), SignAscent()) for sigmoid in (False, True)]

    @jit
    def climb(sources):
        gains = []
        for optimizer, sigmoid in ways:
            term = ReconTerm("x", 1.0, Persistent(optimizer, Schedule(1.0), "bc", sigmoid=sigmoid))
            before, gradients = jax.value_and_grad(lambda s, t=term: persistent_loss(t, scene, ci, s))(sources)
            zeros = jax.tree.map(jnp.zeros_like, sources)
            moved = ascend(
                AdversaryState(sources, zeros, zeros, jnp.zeros((), jnp.int32)), gradients, 1e-3, optimizer, sigmoid
            )
            gains.append((persistent_loss(term, scene, ci, moved.sources) - before, moved.ascents))
        return gains

    for gain, ascents in climb(stored_of(scene)):
        assert gain > 0 and ascents == 1


@pytest.mark.parametrize("optimizer", [AdamAscent(), SignAscent()])
def test_clipping_after_every_ascent_or_none_under_the_sigmoid(optimizer) -> None:
    start = {"a": jnp.asarray([0.0, 0.5, 1.0], jnp.float32)}
    adam = isinstance(optimizer, AdamAscent)
    for sign in (1.0, -1.0):
        gradients = {"a": jnp.asarray([sign, sign, sign], jnp.float32)}
        clipped = ascend(state_of(start, adam), gradients, 0.7, optimizer, sigmoid=False)
        np.testing.assert_allclose(clipped.sources["a"], np.clip(np.array([0, 0.5, 1]) + 0.7 * sign, 0, 1), rtol=1e-5)
        free = ascend(state_of(start, adam), gradients, 0.7, optimizer, sigmoid=True)
        np.testing.assert_allclose(free.sources["a"], [0.7 * sign, 0.5 + 0.7 * sign, 1 + 0.7 * sign], rtol=1e-5)
        assert bounded(effective_sources(free.sources, True))


@pytest.mark.parametrize("optimizer", [AdamAscent(), SignAscent()])
def test_no_gradient_is_no_step(optimizer) -> None:
    start = {"a": jnp.asarray([0.2, 0.5], jnp.float32)}
    moved = ascend(
        state_of(start, isinstance(optimizer, AdamAscent)),
        {"a": jnp.asarray([0.0, 1e-3], jnp.float32)},
        0.1,
        optimizer,
        False,
    )
    np.testing.assert_allclose(moved.sources["a"], [0.2, 0.6], rtol=1e-4)


@pytest.mark.parametrize("init", ["random", "ones", "zeroes"])
def test_a_fresh_adversary_stays_bounded_and_gains(init: str) -> None:
    scene = scene_of(tms())
    ci, attack = importances_of(scene), FreshPGD(init, 0.3, 2, "bc")
    term = ReconTerm("x", 1.0, attack)

    @jit
    def run(key):
        path: list[dict] = []
        fresh_pgd(attack, term, scene, ci, scene.sites, EVERYWHERE, key, record=path.append)
        start = fresh_pgd(FreshPGD(init, 0.3, 0, "bc"), term, scene, ci, scene.sites, EVERYWHERE, key)
        return [start, *path], [forward_divergence(term, scene, ci, s, EVERYWHERE) for s in (start, path[-1])]

    path, (before, after) = run(jax.random.key(0))
    assert after > before
    for sources in path:
        assert bounded(sources)
    for earlier, later in pairwise(path):
        for s in earlier:
            moved = np.asarray(later[s]) - earlier[s]
            on_the_way = (np.asarray(later[s]) > 0) & (np.asarray(later[s]) < 1)
            np.testing.assert_allclose(np.abs(moved[on_the_way & (moved != 0)]), 0.3, rtol=1e-4)
    if init != "random":
        assert all((np.asarray(x) == (init == "ones")).all() for x in path[0].values())


def test_from_ones_with_delta_a_fresh_adversary_starts_at_the_target() -> None:
    scene = scene_of(tms())
    term = ReconTerm("x", 1.0, FreshPGD("ones", 0.1, 0, "c"))
    ones = {s.name: jnp.ones((1, s.C + 1)) for s in scene.sites}
    assert forward_divergence(term, scene, importances_of(scene), ones, EVERYWHERE) < 1e-10


def test_starts() -> None:
    sites = sites_of(chain())
    shapes = source_shapes(sites, "bsc", (20, 10), use_delta=True)
    assert shapes == {s.name: (20, 10, s.C + 1) for s in sites}
    assert source_shapes(sites, "c", (20, 10), use_delta=False) == {s.name: (1, 1, s.C) for s in sites}

    @jit
    def start(key):
        clipped = init_adversary(sites, shapes, key, AdamAscent(), sigmoid=False)
        return clipped, init_adversary(sites, shapes, key, SignAscent(), sigmoid=True)

    clipped, free = start(jax.random.key(0))
    for state, moments in ((clipped, (0.5, 12**-0.5)), (free, (0.0, 1.0))):
        drawn = np.concatenate([np.ravel(x) for x in state.sources.values()])
        np.testing.assert_allclose([drawn.mean(), drawn.std()], moments, atol=0.05)
        assert int(state.ascents) == 0
    assert bounded(clipped.sources)
    assert free.m == {} and free.v == {}
    assert not any(np.asarray(x).any() for x in (*clipped.m.values(), *clipped.v.values()))


def test_warm_up_ascents_hold_components_and_importances() -> None:
    """Nothing of what the sources become depends on V, U or CI in the backward pass."""
    scene = scene_of(tms())
    term, ci = grid_term("PersistentPGDReconLoss", scene), importances_of(scene)

    @jit
    def gradients(components, ci):
        def loss(components, ci):
            return persistent_loss(term, type(scene)(**vars(scene) | {"components": components}), ci, stored_of(scene))

        return jax.grad(loss, (0, 1))(components, ci)

    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradients(scene.components, ci)))


def test_a_warm_up_is_so_many_ascents_at_one_rate() -> None:
    scene = scene_of(tms())
    ci = importances_of(scene)
    pd = pd_of([{"type": "PersistentPGDReconLoss", "coeff": 0.5} | STORED | {"n_warmup_steps": 3}])
    (term,) = terms_from(pd, False)
    both = CausalImportances(ci, ci)

    @jit
    def run(state):
        by_hand = state
        for _ in range(3):
            gradients = jax.grad(lambda s: persistent_loss(term, scene, ci, s))(by_hand.sources)
            by_hand = ascend(by_hand, gradients, 0.05, term.source.optimizer, False)
        warmed = warm_up_adversaries((term,), scene, both, {term.name: state}, jnp.zeros((), jnp.int32), 20)
        return by_hand, warmed[term.name]

    by_hand, warmed = run(state_of(stored_of(scene)))
    assert int(warmed.ascents) == 3
    for x, y in zip(jax.tree.leaves(by_hand), jax.tree.leaves(warmed), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_the_first_active_step_is_the_first_that_is_far_enough() -> None:
    for total in (1, 2, 3, 7, 10, 49, 1000):
        for fraction in (0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.49, 0.5, 0.7, 0.9, 0.99, 0.999):
            want = next(t for t in range(total + 1) if t / total >= fraction)
            assert first_active_step(fraction, total) == want


def test_routing_of_the_ascents_is_that_of_the_loss() -> None:
    """Where no position is routed a fresh adversary has nothing to gain and stays."""
    scene = scene_of(tms())
    attack, ci = FreshPGD("zeroes", 0.3, 2, "bc"), importances_of(scene)
    term = ReconTerm("x", 1.0, attack, AllRouting())
    half = jnp.asarray([True, False, True, False, False])

    @jit
    def run(key):
        return fresh_pgd(attack, term, scene, ci, scene.sites, {"linear1": half, "linear2": half}, key)

    for source in run(jax.random.key(0)).values():
        assert not np.asarray(source)[~np.asarray(half)].any()
        assert np.asarray(source)[np.asarray(half)].any()
