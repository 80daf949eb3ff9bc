"""Unigram and bigram cross-entropies against a computation pair by pair."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from vpd.pretrain.baselines import HELD_OUT, STRENGTHS, Counts, baselines, limited

VOCAB = 7


def _rows(n: int, seed: int, length: int = 9) -> np.ndarray:
    """Rows of a chain in which each token is often followed by the next one."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, length), np.int32)
    rows[:, 0] = rng.integers(0, VOCAB - 1, n)
    for t in range(1, length):
        jump = rng.random(n) < 0.3
        rows[:, t] = np.where(jump, rng.integers(0, VOCAB - 1, n), (rows[:, t - 1] + 1) % (VOCAB - 1))
    return rows


def _by_hand(train: np.ndarray, evaluated: np.ndarray, strength: float) -> tuple[float, float]:
    """Unigram and bigram loss, one pair at a time."""
    pairs, before, after = Counter(), Counter(), Counter()
    for row in train.tolist():
        for a, b in itertools.pairwise(row):
            pairs[a, b] += 1
            before[a] += 1
            after[b] += 1
    total = sum(after.values())
    unigram, bigram = [], []
    for row in evaluated.tolist():
        for a, b in itertools.pairwise(row):
            p = (after[b] + 1) / (total + VOCAB)
            unigram.append(-math.log(p))
            bigram.append(-math.log((pairs[a, b] + strength * p) / (before[a] + strength)))
    return sum(unigram) / len(unigram), sum(bigram) / len(bigram)


def test_against_counting_pair_by_pair() -> None:
    train, evaluated = _rows(60, 0), _rows(20, 1)
    evaluated[0, 3] = VOCAB - 1  # a token that training never shows
    found = baselines([train[:25], train[25:]], evaluated, VOCAB)
    chosen = np.arange(25) % HELD_OUT == HELD_OUT - 1, np.arange(35) % HELD_OUT == HELD_OUT - 1
    held_out = np.concatenate([train[:25][chosen[0]], train[25:][chosen[1]]])
    kept = np.concatenate([train[:25][~chosen[0]], train[25:][~chosen[1]]])
    best = min(STRENGTHS, key=lambda k: _by_hand(kept, held_out, k)[1])
    assert found.strength == best
    assert (found.unigram, found.bigram) == pytest.approx(_by_hand(train, evaluated, best), rel=1e-12)
    assert found.tokens == 60 * 8
    assert found.bigram < found.unigram


@pytest.mark.parametrize("strength", [0.1, 30.0])
def test_both_are_distributions(strength: float) -> None:
    counts = Counts([_rows(30, 2)], VOCAB)
    assert counts.unigram().sum() == pytest.approx(1.0)
    for a in range(VOCAB):
        rows = np.array([[a, b] for b in range(VOCAB)], np.int32)
        assert np.exp(-counts.bigram_losses(rows, strength)).sum() == pytest.approx(1.0)


def test_rows_are_no_neighbours_of_each_other() -> None:
    counts = Counts([np.array([[0, 1], [2, 3]], np.int32)], VOCAB)
    first, second = np.array([0, 1, 2]), np.array([1, 2, 3])
    assert counts.of_pairs(first, second).tolist() == [1, 0, 1]


def test_the_evaluated_rows_choose_nothing() -> None:
    train = _rows(80, 3)
    strengths = {baselines([train], _rows(5, seed), VOCAB).strength for seed in range(5)}
    assert len(strengths) == 1


def test_a_text_of_few_rows_has_one_too() -> None:
    found = baselines([_rows(3, 0)], _rows(2, 1), VOCAB)
    assert found.strength == 1.0 and math.isfinite(found.bigram)


def test_counting_stops_where_it_is_told() -> None:
    blocks = [_rows(10, seed) for seed in range(4)]
    assert len(list(limited(blocks, 100))) == 2
    assert len(list(limited(blocks, 10_000))) == 4
