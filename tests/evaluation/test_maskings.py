"""Maskings: some exactly, the drawn ones by their properties, their losses against a plain forward."""

from functools import cache

import jax
import numpy as np
import pytest
from evaluation.language_scenes import language_scene, log_softmax, plain_forward
from objective.scenes import jit

from vpd.evaluation.maskings import DESCRIPTIONS, MASKINGS, WORDS, Masking, as_metrics, masked_losses, masks_of
from vpd.objective import Scene

# A layer by itself, with one more matrix, a stack of the three others, and both ends of the network.
SIZES = {"attn.q_proj": 5, "mlp.down_proj": 4, "0.attn.o_proj": 6, "wte": 3, "lm_head": 4}
KEY = jax.random.key(3)
THRESHOLD = 0.3


@cache
def scene(use_delta: bool = True) -> tuple[Scene, dict[str, jax.Array]]:
    return language_scene("simple_mlp", SIZES, n_layers=4, use_delta=use_delta)


@cache
def masks(masking: Masking, use_delta: bool = True):
    own, ci = scene(use_delta)
    return masks_of(masking, own, ci, jax.random.fold_in(KEY, MASKINGS.index(masking)), THRESHOLD)


@cache
def losses():
    own, ci = scene()
    return jit(lambda s, c: masked_losses(s, c, KEY, THRESHOLD))(own, ci)


def test_the_scene_has_stacks_and_single_sites() -> None:
    assert {site.depth for site in scene()[0].sites} >= {1, 3}
    assert len({site.name for site in scene()[0].sites}) >= 5


@pytest.mark.parametrize("masking", MASKINGS)
def test_every_masking_has_words_and_only_the_stochastic_ones_a_delta(masking: Masking) -> None:
    assert DESCRIPTIONS[masking] and WORDS[masking]
    own, ci = scene()
    for site in own.sites:
        mask = masks(masking)[site.name]
        assert mask.component.shape == ci[site.name].shape
        assert (mask.delta is not None) == masking.startswith("stoch")
        assert masks(masking, use_delta=False)[site.name].delta is None
        assert np.all((np.asarray(mask.component) >= 0) & (np.asarray(mask.component) <= 1))


def test_the_deterministic_ones() -> None:
    own, ci = scene()
    for site in own.sites:
        c = np.asarray(ci[site.name])
        assert 0.1 < np.mean(c > THRESHOLD) < 0.9
        for masking, want in {
            "ci_masked": c,
            "unmasked": np.ones_like(c),
            "zero_masked": np.zeros_like(c),
            "rounded_masked": c > THRESHOLD,
        }.items():
            np.testing.assert_array_equal(masks(masking)[site.name].component, want)  # type: ignore[arg-type]


def test_stochastic_masks_lie_between_the_importance_and_one() -> None:
    own, ci = scene()
    for site in own.sites:
        mask, c = masks("stoch_masked")[site.name], np.asarray(ci[site.name])
        m, delta = np.asarray(mask.component), np.asarray(mask.delta)
        assert np.all(m >= c - 1e-7)
        free = (m - c)[c < 0.9] / (1 - c)[c < 0.9]
        assert 0.3 < free.mean() < 0.7 and free.std() > 0.15
        assert delta.shape == c.shape[:-1] and delta.std() > 0.1


@pytest.mark.parametrize("masking", ["ci_shuffled"])
def test_shuffled_masks_are_dealt_anew_at_every_position(masking: Masking) -> None:
    own, ci = scene()
    for site in own.sites:
        c, m = np.asarray(ci[site.name]), np.asarray(masks(masking)[site.name].component)
        np.testing.assert_array_equal(np.sort(m, axis=-1), np.sort(c, axis=-1))
        np.testing.assert_allclose(m.sum(-1), c.sum(-1), rtol=1e-6)
        moved = (m != c).any(axis=-1)
        assert moved.mean() > 0.5


def test_the_shuffled_stochastic_masks_lie_above_shuffled_importances() -> None:
    own, ci = scene()
    for site in own.sites:
        c, m = np.asarray(ci[site.name]), np.asarray(masks("stoch_shuffled")[site.name].component)
        assert np.all(np.sort(m, -1) >= np.sort(c, -1) - 1e-6)  # order statistics of what lies above them
        assert np.any(m < c - 1e-6)  # but not above the importances where they were


def test_random_masks_ignore_the_importances_and_matrices_differ() -> None:
    own, ci = scene()
    again = masks_of("random_masked", own, {s: 0 * c for s, c in ci.items()}, jax.random.fold_in(KEY, 3), THRESHOLD)
    for site in own.sites:
        np.testing.assert_array_equal(again[site.name].component, masks("random_masked")[site.name].component)
        if site.span is not None:
            first, second = np.asarray(again[site.name].component)[:2]
            assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("masking", MASKINGS)
def test_losses_against_a_plain_forward(masking: Masking) -> None:
    own, _ = scene()
    log_p = log_softmax(plain_forward(own)[0])
    log_q = log_softmax(plain_forward(own, masks(masking))[0])
    batch = np.asarray(own.batch)

    def ce(log: np.ndarray) -> float:
        T = batch.shape[1]
        return -float(np.mean([log[b, t, batch[b, t + 1]] for b in range(len(batch)) for t in range(T - 1)]))

    zero = ce(log_softmax(plain_forward(own, masks("zero_masked"))[0]))
    kl = float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))
    np.testing.assert_allclose(losses().clean, ce(log_p), rtol=1e-4)
    np.testing.assert_allclose(losses().ce[masking], ce(log_q), rtol=1e-4)
    np.testing.assert_allclose(losses().kl[masking], kl, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(
        losses().unrecovered[masking], (ce(log_q) - ce(log_p)) / (zero - ce(log_p)), rtol=2e-3, atol=1e-4
    )


def test_metrics_name_every_masking() -> None:
    got = as_metrics("CE", losses())
    assert set(got) == {"CE/ce_target"} | {
        f"CE/{measure}_{masking}" for measure in ("ce", "ce_difference", "ce_unrecovered", "kl") for masking in MASKINGS
    }
    assert got["CE/ce_unrecovered_zero_masked"] == pytest.approx(1.0)
