"""Every class of recon loss: its forwards, its live sites, its routing, and values against NumPy."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import (
    LOSSES,
    STORED,
    chain,
    grid_term,
    importances_of,
    jit,
    pd_of,
    scene_of,
    stored_of,
    tms,
)

from vpd.decomposition import AllRouting, SiteMask, StaticProbability, UniformKSubset
from vpd.importance import CausalImportances
from vpd.objective import AdversaryState, recon, recon_loss, total_loss, warm_up_adversaries
from vpd.objective.build import GRID, terms_from
from vpd.objective.recon import live_groups
from vpd.targets import frozen_weights

FOUR = [("embed",), ("fc1.pre_identity",), ("fc1",), ("fc2",)]
ALL = [("embed", "fc1.pre_identity", "fc1", "fc2")]
# Live sites of each forward, in order, on four sites; n_mask_samples is 2, a fresh adversary makes 3 ascents.
FORWARDS = {
    "UnmaskedReconLoss": ALL,
    "CIMaskedReconLoss": ALL,
    "CIMaskedReconSubsetLoss": ALL,
    "CIMaskedReconLayerwiseLoss": FOUR,
    "CIHiddenActsReconLoss": ALL,
    "StochasticReconLoss": ALL * 2,
    "StochasticReconSubsetLoss": ALL * 2,
    "StochasticReconLayerwiseLoss": [s for s in FOUR for _ in range(2)],
    "ChunkwiseSubsetReconLoss": [ALL[0][:2]] * 3 + [ALL[0][2:]] * 3,
    "StochasticHiddenActsReconLoss": ALL * 2,
    "PGDReconLoss": ALL * (3 + 1),
    "PGDReconSubsetLoss": ALL * (3 + 1),
    # All ascents of all sites come before the forwards that count.
    "PGDReconLayerwiseLoss": [s for s in FOUR for _ in range(3)] + FOUR,
    "PersistentPGDReconLoss": ALL,
    "PersistentPGDReconSubsetLoss": ALL * 4,
    "MergedStochasticPersistentReconLoss": ALL * 3,
}
ROUTED = {
    "CIMaskedReconSubsetLoss": UniformKSubset(),
    "StochasticReconSubsetLoss": StaticProbability(0.6),
    "ChunkwiseSubsetReconLoss": UniformKSubset(),
    "PGDReconSubsetLoss": UniformKSubset(),
    "PersistentPGDReconSubsetLoss": UniformKSubset(),
    "MergedStochasticPersistentReconLoss": UniformKSubset(),
}
NO_DELTA = {n for n in GRID if n.startswith(("CI", "Unmasked"))}


class Forwards:
    """Records the masks of every masked forward."""

    def __init__(self) -> None:
        self.masks: list[dict] = []

    def __enter__(self) -> "Forwards":
        def spy(function):
            def called(target, components, batch, masks, *more):
                self.masks.append({s: m if isinstance(m, SiteMask) else m.made() for s, m in masks.items()})
                return function(target, components, batch, masks, *more)

            return called

        self.patch = mock.patch.object(recon, "masked_site_outputs", spy(recon.masked_site_outputs))
        self.patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.stop()


def unrolled(attack, term, scene, ci, group, routes, key, original=recon.fresh_pgd):
    """The ascents one by one, so that each is traced."""
    return original(attack, term, scene, ci, group, routes, key, record=lambda _: None)


@pytest.fixture(scope="module")
def scene():
    return scene_of(chain(), (3, 4))


@pytest.mark.parametrize("name", GRID)
def test_forwards_live_sites_routing_and_delta(name: str, scene) -> None:
    term = grid_term(name, scene)
    with Forwards() as forwards, mock.patch.object(recon, "fresh_pgd", unrolled):
        jax.eval_shape(
            lambda ci, stored: recon_loss(term, scene, ci, jax.random.key(0), stored),
            importances_of(scene),
            stored_of(scene),
        )
    assert [set(masks) for masks in forwards.masks] == [set(live) for live in FORWARDS[name]]
    assert term.routing == ROUTED.get(name, AllRouting())
    for masks in forwards.masks:
        for mask in masks.values():
            assert (mask.routing is not None) == (name in ROUTED)
            assert (mask.delta is not None) == (name not in NO_DELTA)


def test_the_table_of_this_file_has_every_class() -> None:
    assert set(GRID) == set(FORWARDS) == set(LOSSES)


@pytest.mark.parametrize("name", [n for n in GRID if "Persistent" in n])
def test_warm_up_ascents_run_all_sites_at_all_positions(name: str, scene) -> None:
    term, stored, ci = grid_term(name, scene), stored_of(scene), importances_of(scene)
    state = AdversaryState(stored, stored, stored, jnp.zeros((), jnp.int32))
    with Forwards() as forwards:
        jax.eval_shape(
            lambda state, step: warm_up_adversaries((term,), scene, CausalImportances(ci, ci), {name: state}, step, 20),
            state,
            jnp.zeros((), jnp.int32),
        )
    # Two ascents, traced once for both.
    assert term.source.n_warmup_steps == 2
    assert [set(masks) for masks in forwards.masks] == [set(ALL[0])]
    assert all(mask.routing is None for mask in forwards.masks[0].values())


@pytest.mark.parametrize("name", [n for n in GRID if n not in NO_DELTA])
def test_without_the_delta_component_no_mask_has_one(name: str) -> None:
    scene = scene_of(chain(), (3, 4), use_delta=False)
    with Forwards() as forwards:
        jax.eval_shape(
            lambda ci, stored: recon_loss(grid_term(name, scene), scene, ci, jax.random.key(0), stored),
            importances_of(scene),
            stored_of(scene),
        )
    assert forwards.masks and all(mask.delta is None for masks in forwards.masks for mask in masks.values())


@pytest.mark.parametrize(("size", "want"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (4, [4]), (9, [4])])
def test_chunks_are_consecutive(size: int, want: list[int], scene) -> None:
    groups = live_groups(grid_term("ChunkwiseSubsetReconLoss", scene, sites_per_chunk=size), scene.sites)
    assert [len(group) for group in groups] == want
    assert [site for group in groups for site in group] == list(scene.sites)


def by_hand(scene, masks: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output and site outputs of a TMS in float64; sites without a mask are frozen."""
    x, outputs = np.asarray(scene.batch, np.float64), {}
    weights = frozen_weights(scene.target, scene.batch)
    for site in scene.sites:
        V, U = (np.asarray(a, np.float64) for a in (scene.components[site.name].V, scene.components[site.name].U))
        x = (x @ V * masks[site.name]) @ U if site.name in masks else x @ np.asarray(weights[site.name], np.float64)
        if site.name == "linear2":
            x = x + np.asarray(scene.target.bias)
        outputs[site.name] = x
    return np.maximum(x, 0), outputs


@pytest.mark.parametrize("hidden", [0, 1])
def test_deterministic_losses_against_numpy(hidden: int) -> None:
    scene = scene_of(tms(hidden), (5,))
    ci = importances_of(scene)
    names = [n for n in GRID if n in NO_DELTA and n != "CIMaskedReconSubsetLoss"]
    terms = {n: grid_term(n, scene) for n in names}
    got = jit(lambda ci, key: {n: recon_loss(t, scene, ci, key) for n, t in terms.items()})(ci, jax.random.key(0))

    masks = {s: np.asarray(x, np.float64) for s, x in ci.items()}
    clean, clean_outputs = by_hand(scene, {})

    def mse(given: dict) -> float:
        return np.mean((by_hand(scene, given)[0] - clean) ** 2)

    outputs = by_hand(scene, masks)[1]
    squares = [np.square(outputs[s] - clean_outputs[s]) for s in masks]
    want = {
        "UnmaskedReconLoss": mse({s: np.ones_like(m) for s, m in masks.items()}),
        "CIMaskedReconLoss": mse(masks),
        "CIMaskedReconLayerwiseLoss": np.mean([mse({s: m}) for s, m in masks.items()]),
        "CIHiddenActsReconLoss": sum(x.sum() for x in squares) / sum(x.size for x in squares),
    }
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    scene = scene_of(tms())
    losses = [
        {"type": "FaithfulnessLoss", "coeff": 3.0},
        {"type": "ImportanceMinimalityLoss", "coeff": 0.25, "pnorm": 2.0, "beta": 0.5},
        {"type": "CIMaskedReconLoss", "coeff": 0.0},
        {"type": "StochasticReconLoss", "coeff": 2.0},
        {"type": "StochasticReconLoss", "coeff": 0.5, "name": "again"},
        {"type": "PersistentPGDReconLoss", "coeff": 0.5} | STORED,
    ]
    pd = pd_of(losses, n_mask_samples=1)
    terms, weights, ci = terms_from(pd, False), frozen_weights(scene.target, scene.batch), importances_of(scene)
    assert [term.name for term in terms] == [loss.get("name", loss["type"]) for loss in losses]
    stored = {"PersistentPGDReconLoss": stored_of(scene)}

    @jit
    def run(step, seed):
        both = CausalImportances(ci, ci)
        return total_loss(terms, scene, scene.components, weights, both, stored, step, pd.steps, seed)

    total, logs = run(np.int32(0), np.int32(0))
    assert set(logs) == {term.name for term in terms} | {"ImportanceMinimalityLoss/beta_free"}
    np.testing.assert_allclose(total, sum(term.coeff * float(logs[term.name]) for term in terms), rtol=1e-5)
    # Every draw is a function of seed, step and name.
    assert logs["StochasticReconLoss"] != logs["again"]
    np.testing.assert_array_equal(run(np.int32(0), np.int32(0))[1]["again"], logs["again"])
    for step, seed in ((1, 0), (0, 1)):
        other = run(np.int32(step), np.int32(seed))[1]
        assert other["again"] != logs["again"]
        np.testing.assert_array_equal(other["CIMaskedReconLoss"], logs["CIMaskedReconLoss"])
