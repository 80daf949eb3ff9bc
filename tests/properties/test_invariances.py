"""What changes no loss: the order of subcomponents, a harmless adversary, tiling; and what removes everything."""

from dataclasses import replace
from itertools import cycle
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective.scenes import LOSSES, TARGETS, chain, grid_term, importances_of, jit, scene_of, stored_of, tms

from vpd.decomposition import Components, ComponentSet
from vpd.importance.squash import SQUASHINGS
from vpd.objective import Schedule, recon, recon_loss
from vpd.objective.build import GRID
from vpd.objective.recon import forward_divergence
from vpd.targets import masked_forward

ADVERSARIAL = [name for name in GRID if "PGD" in name or "Merged" in name]
few = settings(max_examples=20, deadline=None, derandomize=True)


def channels(orders: dict, values: dict) -> dict:
    """Permute the subcomponents of sources or importances; a delta channel stays last."""
    return {s: x[..., np.r_[orders[s], orders[s].size : x.shape[-1]]] for s, x in values.items()}


# Each class on one of several kinds of target, in turn.
ON_TARGETS = list(zip(GRID, cycle(("tms", "resid", "chain", "induction")), strict=False))


@pytest.mark.parametrize(("name", "target"), ON_TARGETS)
def test_the_order_of_subcomponents_changes_nothing(name: str, target: str) -> None:
    """When all that belongs to a subcomponent moves with it: V, U, importance and source; riders included."""
    make, leading = TARGETS[target]
    scene = scene_of(make(), leading)
    rng = np.random.default_rng(0)
    orders = {s.name: rng.permutation(s.C) for s in scene.sites}
    shuffled = ComponentSet(
        {s: Components(c.V[:, orders[s]], c.U[orders[s]]) for s, c in scene.components.owned.items()}
    )
    ci, stored = importances_of(scene), stored_of(scene) if "Persistent" in name else {}
    ridden = "HiddenActs" not in name
    rider = {"hidden_acts_reconstruction": {"coeff": 0.5, "sites": ["*"]}} if ridden else {}
    term, draw, start = grid_term(name, scene, **rider), recon._draw, recon._start

    @jit
    def run(key: jax.Array) -> tuple:
        plain = recon_loss(term, scene, ci, key, stored)
        with (
            mock.patch.object(recon, "_draw", lambda *given: channels(orders, draw(*given))),
            mock.patch.object(recon, "_start", lambda *given: channels(orders, start(*given))),
        ):
            moved = replace(scene, components=shuffled)
            return plain, recon_loss(term, moved, channels(orders, ci), key, channels(orders, stored))

    want, got = run(jax.random.key(0))
    assert float(want) > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("name", "target"), list(zip(ADVERSARIAL, cycle(("tms", "resid", "induction")), strict=False)))
def test_with_delta_off_and_ci_1_every_adversary_is_harmless(name: str, target: str) -> None:
    make, leading = TARGETS[target]
    scene = scene_of(make(), leading, use_delta=False)
    ones = {s: x * 0 + 1 for s, x in importances_of(scene).items()}
    unmasked = grid_term(name, scene)
    routing = {"routing": {"type": "static_probability", "p": 1.0}} if "Subset" in name or "Merged" in name else {}
    term = grid_term(name, scene, **routing)
    layerwise = grid_term("CIMaskedReconLayerwiseLoss" if unmasked.live == "each" else "UnmaskedReconLoss", scene)

    @jit
    def run(key, stored):
        return recon_loss(term, scene, ones, key, stored), recon_loss(layerwise, scene, ones, key)

    for seed in (0, 1):
        attacked, want = run(jax.random.key(seed), stored_of(scene, key=10 * seed))
        np.testing.assert_allclose(attacked, want, rtol=1e-5)


@pytest.mark.parametrize("use_delta", [True, False])
def test_ci_0_with_source_0_removes_everything(use_delta: bool) -> None:
    scene = scene_of(tms(), use_delta=use_delta)
    nothing, zero = (
        {s: x * 0 for s, x in importances_of(scene).items()},
        {s: x * 0 for s, x in stored_of(scene).items()},
    )
    term = grid_term("PersistentPGDReconLoss", scene)
    masks = recon.site_masks(term, scene, nothing, zero, dict.fromkeys(nothing))
    out = masked_forward(scene.target, scene.components, scene.batch, masks)
    np.testing.assert_allclose(out, np.broadcast_to(np.maximum(scene.target.bias, 0), out.shape), atol=1e-6)


@pytest.mark.parametrize("use_delta", [True, False])
def test_importance_1_or_source_1_is_mask_1(use_delta: bool) -> None:
    """ci + (1 − ci) s is symmetric in the two: source 1 is as harmless as importance 1."""
    scene = scene_of(chain(), (3, 2), use_delta=use_delta)
    ci, stored = importances_of(scene), stored_of(scene)
    delta = {s: x[..., -1:] for s, x in stored.items()}
    term = grid_term("PersistentPGDReconLoss", scene)
    ones = {s: x * 0 + 1 for s, x in ci.items()}
    source_1 = {
        s: np.concatenate([np.ones_like(x[..., :-1]), delta[s]], -1) if use_delta else np.ones_like(x)
        for s, x in stored.items()
    }

    @jit
    def run(ci, sources):
        return forward_divergence(term, scene, ci, sources, dict.fromkeys(ci))

    np.testing.assert_allclose(run(ones, stored), run(ci, source_1), rtol=1e-5)


def test_a_tiled_source_is_the_written_out_one() -> None:
    scene = scene_of(chain(), (6, 2))
    ci = importances_of(scene)
    term = grid_term("PersistentPGDReconLoss", scene)
    two = {s: np.asarray(x[:2]) for s, x in stored_of(scene).items()}
    six = {s: np.tile(x, (3, 1, 1)) for s, x in two.items()}

    @jit
    def value(sources):
        return forward_divergence(term, scene, ci, sources, dict.fromkeys(ci))

    np.testing.assert_allclose(value(two), value(six), rtol=1e-6)
    rolled = {s: np.roll(x, 1, axis=0) for s, x in six.items()}
    assert abs(value(rolled) - value(six)) > 1e-6


def test_every_class_of_the_grid_is_written_out() -> None:
    assert set(GRID) == set(LOSSES)


@few
@given(
    st.sampled_from(sorted(SQUASHINGS)),
    st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6),
)
def test_squashings_rise_and_stay_close_to_their_range(name: str, z: list[float]) -> None:
    value = np.asarray(SQUASHINGS[name](jnp.asarray(np.sort(np.asarray(z, np.float32)))))
    slack = {"leaky_hard": (0.01 * 50, 0), "upper_leaky_hard": (0, 0.01 * 50), "swish_hard": (0.05, 0.05)}
    below, above = slack.get(name, (0, 0))
    assert value.min() >= -below - 1e-6 and value.max() <= 1 + above + 1e-6
    if name != "swish_hard":
        assert (np.diff(value) >= 0).all()


@few
@given(
    st.integers(1, 300),
    st.sampled_from([0.0, 0.025, 0.1, 0.5, 1.0]),
    st.floats(0, 2),
    st.sampled_from(["constant", "linear", "cosine"]),
)
def test_schedules_start_at_0_peak_after_warm_up_and_end_at_the_final_value(
    total: int, warmup: float, final: float, kind: str
) -> None:
    schedule = Schedule(0.1, warmup, final if kind != "constant" else 1.0, kind)
    n = int(total * warmup)
    values = [schedule.on_host(t, total) for t in range(total)]
    if n:
        assert values[0] == 0.0
        np.testing.assert_allclose(np.diff(values[:n]), 0.1 / n)
    if n < total:
        assert values[n] == pytest.approx(0.1)
    if total - n > 1:
        assert values[-1] == pytest.approx(0.1 * schedule.final_val_frac)
        steps = np.diff(values[n:])
        assert (steps <= 1e-12).all() or (steps >= -1e-12).all()
