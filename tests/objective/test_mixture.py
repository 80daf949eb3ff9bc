"""The merged forward: whole elements are adversarial or stochastic, and its ends are the two terms it replaces."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import chain, grid_term, importances_of, jit, pd_of, scene_of, stored_of, tms

from vpd.importance import CausalImportances
from vpd.objective import recon_loss, total_loss
from vpd.objective.build import terms_from
from vpd.objective.recon import persistent_loss, recon_forwards
from vpd.objective.total import persistent_terms
from vpd.targets import frozen_weights

MERGED = "MergedStochasticPersistentReconLoss"
SCOPES = {"c": (1, 1), "sc": (1, 4), "bc": (6, 1), "bsc": (6, 4)}


def stored_in(scene, leading: tuple[int, ...]) -> dict:
    return {s: x[: leading[0]] + 0.01 * jnp.zeros((*leading, 1)) for s, x in stored_of(scene).items()}


def mixture_of(scene, fraction: float, **changes):
    """A term with any fraction; 0 is refused in a run file."""
    term = grid_term(MERGED, scene, **changes)
    return replace(term, source=replace(term.source, adv_fraction=fraction))


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_ends_are_the_terms_it_replaces(scope: str, sigmoid: bool) -> None:
    """To the bit, from the same key: all adversarial, all stochastic; then no source has a gradient."""
    scene = scene_of(chain(), (6, 4))
    ci, stored = importances_of(scene), stored_in(scene, SCOPES[scope])
    changes = {"scope": {"type": scope}, "n_samples": 2, "use_sigmoid_parameterization": sigmoid}
    routing = {"type": "static_probability", "p": 0.6}
    adversarial = grid_term("PersistentPGDReconSubsetLoss", scene, routing=routing, **changes)
    stochastic = grid_term("StochasticReconSubsetLoss", scene, routing=routing)
    ends = [mixture_of(scene, fraction, routing=routing, **changes) for fraction in (1.0, 0.0)]

    @jit
    def run(key, stored):
        plain = [recon_loss(t, scene, ci, key, stored) for t in (adversarial, stochastic)]
        merged = [jax.value_and_grad(lambda s, t=t: recon_loss(t, scene, ci, key, s))(stored) for t in ends]
        return plain, merged, jax.grad(lambda s: recon_loss(adversarial, scene, ci, key, s))(stored)

    plain, merged, gradients = run(jax.random.key(0), stored)
    for want, (got, _) in zip(plain, merged, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    for s, g in gradients.items():
        np.testing.assert_allclose(merged[0][1][s], g, rtol=1e-4, atol=1e-6)
        assert not np.asarray(merged[1][1][s]).any()


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_an_element_is_wholly_one_or_the_other(fraction: float) -> None:
    """At all positions, sites and channels, delta included; and so many are adversarial on the average."""
    leading = (400, 3)
    scene = scene_of(chain(), leading)
    term, ci = mixture_of(scene, fraction), importances_of(scene)
    stored = {s.name: jnp.full((1, 1, s.C + 1), 2.0) for s in scene.sites}  # no draw is 2

    @jit
    def sources(key):
        return [x for x, _ in recon_forwards(term, scene, ci, key, stored)]

    drawn = [{s: np.asarray(x) for s, x in forward.items()} for forward in sources(jax.random.key(0))]
    choices = []
    for forward in drawn:
        assert {s: x.shape for s, x in forward.items()} == {s.name: (*leading, s.C + 1) for s in scene.sites}
        is_stored = np.concatenate([(x == 2.0).reshape(400, -1) for x in forward.values()], axis=1)
        assert (is_stored.all(1) | ~is_stored.any(1)).all()
        choices.append(is_stored[:, 0])
        rest = np.concatenate([x[~choices[-1]].ravel() for x in forward.values()])
        np.testing.assert_allclose([rest.mean(), rest.std()], [0.5, 12**-0.5], atol=0.02)
    np.testing.assert_allclose(np.mean(choices), fraction, atol=4 * (0.25 / np.size(choices)) ** 0.5)
    # Forwards choose independently.
    both = np.mean(choices[0] & choices[1])
    np.testing.assert_allclose(both, fraction**2, atol=4 * (0.25 / 400) ** 0.5)


def test_only_adversarial_elements_reach_their_sources() -> None:
    scene = scene_of(tms(), (40,))
    term, ci, stored = mixture_of(scene, 0.5, n_samples=1), importances_of(scene), stored_of(scene)
    key = jax.random.key(3)

    @jit
    def run(stored):
        gradients = jax.grad(lambda s: recon_loss(term, scene, ci, key, s))(stored)
        ((sources, _),) = recon_forwards(term, scene, ci, key, stored)
        warm_up = jax.grad(lambda s: persistent_loss(term, scene, ci, s))(stored)
        return gradients, sources, warm_up

    gradients, sources, warm_up = run(stored)
    chosen = (np.asarray(sources["linear1"]) == np.asarray(stored["linear1"])).all(1)
    assert 5 < chosen.sum() < 35
    for s in stored:
        assert not np.asarray(gradients[s])[~chosen].any()
        assert np.asarray(warm_up[s]).any(1).all()
    moved = np.concatenate([np.asarray(g) for g in gradients.values()], 1).any(1)
    # Routing leaves some positions to the frozen weights.
    assert not moved[~chosen].any() and moved[chosen].mean() > 0.9


def test_draws_depend_on_seed_step_and_name_alone() -> None:
    scene = scene_of(tms())
    loss = {"type": MERGED, "coeff": 1.0, "adv_fraction": 0.5, "scope": {"type": "bc"}}
    loss["optimizer"] = {"type": "sign", "lr_schedule": {"start_val": 0.1}}
    terms = terms_from(pd_of([loss, loss | {"name": "again"}, loss | {"name": "late", "start_frac": 0.5}]), False)
    assert list(persistent_terms(terms)) == [MERGED, "again", "late"]
    ci, weights = importances_of(scene), frozen_weights(scene.target, scene.batch)
    stored = dict.fromkeys((MERGED, "again", "late"), stored_of(scene))

    @jit
    def run(step, seed):
        both = CausalImportances(ci, ci)
        return total_loss(terms, scene, scene.components, weights, both, stored, step, 20, seed)[1]

    first = run(np.int32(0), np.int32(0))
    assert first[MERGED] != first["again"] and np.isnan(first["late"])
    assert run(np.int32(0), np.int32(0))[MERGED] == first[MERGED]
    assert run(np.int32(1), np.int32(0))[MERGED] != first[MERGED] != run(np.int32(0), np.int32(1))[MERGED]
    assert np.isfinite(run(np.int32(10), np.int32(0))["late"])
