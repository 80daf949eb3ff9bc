"""The merge that keeps costs against the one that computes them all anew, and samplers against their definitions."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaivePairs, naive_history
from scipy.stats import chisquare

from vpd.analysis.clustering import frontier as frontier_module
from vpd.analysis.clustering import groups as groups_module
from vpd.analysis.clustering.distance import moved_fraction
from vpd.analysis.clustering.frontier import Frontier
from vpd.analysis.clustering.groups import Groups
from vpd.analysis.clustering.memberships import from_dense
from vpd.analysis.clustering.merging import merge_all
from vpd.analysis.clustering.samplers import Sampler, exp_rank_sampler, lowest_pair, mcmc_sampler, range_sampler

# Few listed pairs, so that proposals are made among few pairs too.
SAMPLERS = st.one_of(
    st.just(lowest_pair),
    st.builds(range_sampler, st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.sampled_from([1, 5, 1000])),
    st.builds(mcmc_sampler, st.sampled_from([0.0, 1e-3, 0.05, 10.0]), st.sampled_from([1, 5, 1000])),
    st.builds(exp_rank_sampler, st.sampled_from([0.0, 0.5, 4.0, 1000.0])),
)


def planted(seed: int, n: int, positions: int) -> np.ndarray:
    """Firings ``[positions, n]`` with groups, twins, a rare one, and many ties."""
    rng = np.random.default_rng(seed)
    mechanisms = rng.random((positions, max(2, n // 3))) < rng.choice([0.02, 0.1, 0.4, 0.9])
    fires = mechanisms[:, rng.integers(mechanisms.shape[1], size=n)] & (rng.random((positions, n)) < 0.8)
    fires |= rng.random((positions, n)) < rng.choice([0.0, 0.05])
    fires[:, 0] = fires[:, -1]
    fires[0] = True  # none without a firing
    return fires


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 26),
    positions=st.integers(1, 90),
    alpha=st.sampled_from([0.0, 0.1, 1.0, 7.3]),
    sampler=SAMPLERS,
    spare=st.sampled_from([1, 4]),
    block=st.sampled_from([3, 40, 10_000]),
)
def test_history_is_the_naive_one(
    seed: int, n: int, positions: int, alpha: float, sampler: Sampler, spare: int, block: int
) -> None:
    """Also where the front part is so short that all pairs are looked at again and again."""
    fires = planted(seed, n, positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier_module, "_SPARE", spare)
        patch.setattr(frontier_module, "_BLOCK", block)
        found = merge_all(from_dense(fires), alpha, sampler, seed)
    pairs, lengths = naive_history(fires, alpha, sampler, seed)
    assert found.pairs.tolist() == [list(pair) for pair in pairs]
    np.testing.assert_allclose(found.lengths, lengths, rtol=1e-9, atol=1e-9)


def by_definition(pairs: NaivePairs, name: str, value: float) -> np.ndarray:
    """Probability of every pair in the order of cost, from the rule as it is written."""
    cost = pairs.lowest(10_000).score / pairs.positions
    match name:
        case "range":
            weight = (cost <= cost.min() + value * (cost.max() - cost.min())).astype(float)
        case "mcmc":
            weight = np.exp(-cost / value)
        case _:
            weight = np.exp(-np.arange(len(cost)) / value)
    return weight / weight.sum()


@pytest.mark.parametrize("listed", [1, 3, 1000])
@pytest.mark.parametrize(
    ("name", "value", "make"),
    [
        ("range", 0.9, range_sampler),
        ("mcmc", 0.1, mcmc_sampler),
        ("exp_rank", 3.0, lambda value, listed: exp_rank_sampler(value)),
    ],
)
def test_samplers_have_their_probabilities(
    listed: int, name: str, value: float, make: Callable[[float, int], Sampler]
) -> None:
    fires = planted(3, 7, 60)
    pairs = NaivePairs(fires.T, np.array([1, 2, 1, 1, 3, 1, 1]), 0.7)
    rng, choose = np.random.default_rng(0), make(value, listed)
    order = {(int(a), int(b)): rank for rank, (a, b) in enumerate(zip(*_columns(pairs), strict=True))}
    draws = 2000
    counted = np.bincount([order[choose(pairs, rng)] for _ in range(draws)], minlength=len(order))
    expected = by_definition(pairs, name, value) * draws
    assert (expected > 0).sum() > 5
    assert counted[expected == 0].sum() == 0
    # Cells with few expected draws are counted together.
    rare = (expected > 0) & (expected < 5)
    kept = expected >= 5
    have, want = np.append(counted[kept], counted[rare].sum()), np.append(expected[kept], expected[rare].sum())
    assert chisquare(have[want > 0], want[want > 0]).pvalue > 1e-3


def _columns(pairs: NaivePairs) -> tuple[np.ndarray, np.ndarray]:
    low = pairs.lowest(10_000)
    return low.a, low.b


def test_no_scan_at_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs are looked at a few times in a whole history, not once a merge; firings about once in all merges."""
    fires = from_dense(planted(1, 300, 2000))
    looked: list[int] = []
    ranges = groups_module._ranges
    monkeypatch.setattr(groups_module, "_ranges", lambda *bounds: _noted(looked, ranges(*bounds)))
    frontier = Frontier(Groups(fires, fires.coactivation()), 1.0)
    rng, pairs = np.random.default_rng(0), 0
    while frontier.k > 1:
        before, k = frontier.scans, frontier.k
        pair = lowest_pair(frontier, rng)
        pairs += (frontier.scans - before) * k * (k - 1) // 2
        frontier.merge(*pair)
    assert pairs < 5 * 300 * 299 // 2  # all of them at every merge would be 100 times the first
    assert sum(looked) <= float(np.sum(np.diff(fires.starts) ** 2.0))


def _noted(looked: list[int], found: np.ndarray) -> np.ndarray:
    looked.append(len(found))
    return found


def test_planted_mechanisms_are_the_clusters() -> None:
    """Members miss one firing in ten, and fire by themselves now and then."""
    rng = np.random.default_rng(5)
    mechanism = rng.permutation(np.repeat(np.arange(12), [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 8]))
    active = rng.random((5000, 12)) < 0.05
    fires = active[:, mechanism] & (rng.random((5000, len(mechanism))) < 0.9)
    fires |= rng.random(fires.shape) < 0.002
    history = merge_all(from_dense(fires), 1.0)
    labels = history.labels()
    assert moved_fraction(labels, mechanism) == 0
    assert np.bincount(labels).tolist() == [8, 6, 5, 5, 4, 4, 3, 3, 3, 2, 2, 1]
    assert (history.costs[: history.cut] < 0).all() and history.costs[history.cut] > 0
    assert history.lengths[-1] == pytest.approx(fires.any(axis=1).mean() * len(mechanism))
