"""Means over batches of unequal size, and their bootstrap intervals, against a re-computation with loops."""

import numpy as np
import pytest

from vpd.evaluation.intervals import Mean, bootstrap

TOTAL, COUNT = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]), np.array([10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 2.0])


def test_batches_weigh_by_what_is_in_them() -> None:
    """The last batch is smaller: it counts as its 2 positions, not as a batch."""
    values = [t / c for t, c in zip(TOTAL, COUNT, strict=True) for _ in range(int(c))]
    assert Mean(TOTAL, COUNT).value == pytest.approx(np.mean(values))
    assert Mean(TOTAL, COUNT).value != pytest.approx(np.mean(TOTAL / COUNT), rel=0.05)


def test_interval_against_resampling_by_hand() -> None:
    rng = np.random.default_rng(11)
    values = []
    for _ in range(4000):
        chosen = rng.integers(0, 7, size=7)
        values.append(sum(TOTAL[i] for i in chosen) / sum(COUNT[i] for i in chosen))
    low, high = bootstrap({"a": Mean(TOTAL, COUNT)}, 0)["a"]
    assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04)


def test_the_same_seed_the_same_interval() -> None:
    means = {"a": Mean(TOTAL, COUNT)}
    assert bootstrap(means, 3) == bootstrap(means, 3) != bootstrap(means, 4)


def test_two_batches_say_nothing_and_equal_ones_leave_no_doubt() -> None:
    assert bootstrap({"a": Mean(TOTAL[:2], COUNT[:2])}, 0) == {}
    assert bootstrap({"a": Mean(np.ones(5), np.full(5, 2.0))}, 0) == {"a": (0.5, 0.5)}


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_covers_the_mean_as_often_as_it_says(scale: float) -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for i in range(200):
        low, high = bootstrap({"a": Mean(rng.normal(1.0, scale, 30), np.ones(30))}, i)["a"]
        inside += low <= 1.0 <= high
    assert 0.86 <= inside / 200 <= 1.0
