"""Hidden-activation riders: what they measure in a term's own forwards, and who climbs and descends them."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import grid_term, importances_of, jit, normal, pd_of, scene_of, stored_of, tms, uniform
from objective.test_recon_grid import FORWARDS, Forwards, by_hand
from targets.language_models import simple_mlp, tokens

from vpd.decomposition import Components, ComponentSet, Site, Span, members_in_order
from vpd.importance import CausalImportances
from vpd.objective import ReconTerm, Scene, recon_loss, total_loss
from vpd.objective.build import terms_from
from vpd.objective.recon import Constant, Rider, forward_parts, fresh_pgd, persistent_loss, recon_parts
from vpd.targets import frozen_weights, recorded_forward
from vpd.training.build import cut_for

KEY = jax.random.key(0)


def ridden(name: str, scene, coeff: float = 2.0, sites: tuple[str, ...] = ("linear*",), **changes):
    return grid_term(name, scene, hidden_acts_reconstruction={"coeff": coeff, "sites": sites}, **changes)


@pytest.mark.parametrize("sites", [("*",), ("linear2",), ("hidden_layers.*", "linear1")])
@pytest.mark.parametrize("name", ["CIMaskedReconLoss", "CIMaskedReconLayerwiseLoss"])
def test_the_parts_against_numpy(name: str, sites: tuple[str, ...]) -> None:
    """The mean over the forwards of Σ errors / Σ elements; a forward without a site of the rider's counts 0."""
    scene = scene_of(tms(1))
    ci, term = importances_of(scene), ridden(name, scene, sites=sites)
    divergence, hidden = jit(lambda ci: recon_parts(term, scene, ci, KEY))(ci)
    masks = {s: np.asarray(x, np.float64) for s, x in ci.items()}
    clean, clean_outputs = by_hand(scene, {})
    lives = [masks] if name == "CIMaskedReconLoss" else [{s: m} for s, m in masks.items()]
    mse, errors = [], []
    for live in lives:
        out, outputs = by_hand(scene, live)
        squares = [np.square(outputs[s] - clean_outputs[s]) for s in Rider(1.0, sites).among(live)]
        mse.append(np.mean((out - clean) ** 2))
        errors.append(sum(x.sum() for x in squares) / max(1, sum(x.size for x in squares)))
    np.testing.assert_allclose(divergence, np.mean(mse), rtol=1e-5)
    np.testing.assert_allclose(hidden, np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(recon_loss(term, scene, ci, KEY), np.mean(mse) + 2.0 * np.mean(errors), rtol=1e-5)


def test_globs_name_whole_sites() -> None:
    assert Rider(1.0, ("h.1.*",)).among(["h.1.a", "h.10.a", "x.h.1.a"]) == ["h.1.a"]


@pytest.mark.parametrize("name", ["StochasticReconSubsetLoss", "ChunkwiseSubsetReconLoss", "PersistentPGDReconLoss"])
def test_a_rider_makes_no_forward_of_its_own(name: str) -> None:
    """And draws as the term without it does."""
    scene = scene_of(tms(1))
    ci, stored, term = importances_of(scene), stored_of(scene), ridden(name, scene)
    bare = grid_term(name, scene)
    with Forwards() as forwards:
        jax.eval_shape(lambda ci: recon_loss(term, scene, ci, KEY, stored), ci)
        n = len(forwards.masks)
        jax.eval_shape(lambda ci: recon_loss(bare, scene, ci, KEY, stored), ci)
        assert len(forwards.masks) == 2 * n > 0
    assert name != "PersistentPGDReconLoss" or n == len(FORWARDS[name])
    divergence, hidden = jit(lambda ci: recon_parts(term, scene, ci, KEY, stored))(ci)
    np.testing.assert_allclose(divergence, recon_loss(bare, scene, ci, KEY, stored), rtol=1e-5)
    assert hidden > 1e-3


def test_the_term_and_its_rider_are_in_the_total_and_in_the_logs() -> None:
    scene = scene_of(tms())
    rider = {"hidden_acts_reconstruction": {"coeff": 4.0, "sites": ["linear1"]}}
    pd = pd_of([{"type": "CIMaskedReconLoss", "coeff": 0.5} | rider, {"type": "UnmaskedReconLoss", "coeff": 3.0}])
    terms, ci = terms_from(pd, False), importances_of(scene)
    weights, both = frozen_weights(scene.target, scene.batch), CausalImportances(ci, ci)
    step = jnp.zeros((), jnp.int32)
    total, logs = jit(lambda: total_loss(terms, scene, scene.components, weights, both, {}, step, 20, 0))()
    assert set(logs) == {"CIMaskedReconLoss", "CIMaskedReconLoss/hidden_acts", "UnmaskedReconLoss"}
    ridden_part = 0.5 * (logs["CIMaskedReconLoss"] + 4.0 * logs["CIMaskedReconLoss/hidden_acts"])
    np.testing.assert_allclose(total, ridden_part + 3.0 * logs["UnmaskedReconLoss"], rtol=1e-5)


def test_a_resting_term_rests_with_its_rider() -> None:
    scene = scene_of(tms())
    changes = {"start_frac": 0.5, "hidden_acts_reconstruction": {"coeff": 4.0, "sites": ["linear1"]}}
    term, ci = grid_term("PersistentPGDReconLoss", scene, **changes), importances_of(scene)
    weights, both = frozen_weights(scene.target, scene.batch), CausalImportances(ci, ci)

    @jit
    def run(step):
        return total_loss((term,), scene, scene.components, weights, both, {term.name: stored_of(scene)}, step, 20, 0)

    total, logs = run(np.int32(9))
    assert total == 0 and np.isnan(list(logs.values())).all() and len(logs) == 2
    total, logs = run(np.int32(10))
    np.testing.assert_allclose(total, logs[term.name] + 4.0 * logs[f"{term.name}/hidden_acts"], rtol=1e-5)


def test_adversaries_climb_the_rider_too() -> None:
    """With a rider far larger than the divergence, ascents follow the rider's own gradient."""
    scene, routes = scene_of(tms()), dict.fromkeys(("linear1", "linear2"))
    ci, stored = importances_of(scene), stored_of(scene)
    persistent = ridden("PersistentPGDReconLoss", scene, 1e5, ("linear1",))
    fresh = ridden("PGDReconLoss", scene, 1e5, ("linear1",))

    @jit
    def run(stored):
        got = jax.grad(lambda s: persistent_loss(persistent, scene, ci, s))(stored)
        want = jax.grad(lambda s: 1e5 * forward_parts(persistent, scene, ci, s, routes)[1])(stored)
        by_rider = fresh_pgd(fresh.source, fresh, scene, ci, scene.sites, routes, KEY)
        with mock.patch.object(type(fresh.rider), "among", lambda self, sites: list(sites)[1:]):
            other = fresh_pgd(fresh.source, fresh, scene, ci, scene.sites, routes, KEY)
        errors = [forward_parts(fresh, scene, ci, s, routes)[1] for s in (by_rider, other)]
        return got, want, errors

    got, want, errors = run(stored)
    for s in got:
        np.testing.assert_allclose(got[s], want[s], rtol=2e-3, atol=20)
    assert errors[0] > errors[1]


@pytest.mark.parametrize("globs", [("h.1.*",), ("h.*.mlp.c_fc", "lm_head"), ("h.0-2.*",), ("h.10.*",)])
def test_a_rider_names_single_matrices_of_stacks(globs: tuple[str, ...]) -> None:
    """And never a stack by its own name."""
    model, batch = simple_mlp(3), tokens()
    span = Span("h", 0, 3)
    stacks = (Site("h.0-2.attn.v_proj", 8, 4, 2, span=span), Site("h.0-2.mlp.c_fc", 8, 12, 3, span=span))
    stacks = (*stacks, Site("lm_head", 8, 20, 2))
    single = tuple(replace(site, name=name, span=None) for site, _, name in members_in_order(stacks))
    pieces = {s.name: Components(normal(s.d_in, s.C, key=i), normal(s.C, s.d_out)) for i, s in enumerate(single)}
    ci = {s.name: uniform(*batch.shape, s.C, key=i) for i, s in enumerate(single)}
    term = ReconTerm("x", 1.0, Constant(0), rider=Rider(1.0, globs))

    def hidden(sites: tuple[Site, ...]) -> float:
        def of(tree: dict, site: Site):
            rows = [tree[name] for name in site.members]
            return rows[0] if site.span is None else jax.tree.map(lambda *x: jnp.stack(x), *rows)

        held, own = ({s.name: of(tree, s) for s in sites} for tree in (pieces, ci))

        def run(held, own, batch) -> jax.Array:
            clean, _, outputs, _ = recorded_forward(cut_for(model, sites), batch, sites)
            scene = Scene(cut_for(model, sites), ComponentSet(held), batch, clean, sites, batch.shape, False)
            scene = replace(scene, clean_outputs=outputs)
            routes = dict.fromkeys(own)
            return forward_parts(term, scene, own, {s: jnp.zeros(()) for s in own}, routes)[1]

        return float(jit(run)(held, own, batch))

    found = hidden(stacks)
    assert found == pytest.approx(hidden(single), rel=1e-5)
    assert (found > 0) == (globs[0] not in ("h.0-2.*", "h.10.*"))
