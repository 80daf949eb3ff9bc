"""Distances of partitions against their definitions, and what they do not depend on."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpd.analysis.clustering.distance import adjusted_rand, jaccard, matched, moved_fraction, variation_of_information
from vpd.analysis.clustering.ensemble import agreement, co_membership, stability
from vpd.analysis.clustering.memberships import from_dense


def partition(raw: list[int]) -> np.ndarray:
    return np.unique(raw, return_inverse=True)[1]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(2, 9))
def test_by_definition(data: st.DataObject, n: int) -> None:
    draw = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    a, b = partition(data.draw(draw)), partition(data.draw(draw))
    joint = np.array([[np.mean((a == i) & (b == j)) for j in range(b.max() + 1)] for i in range(a.max() + 1)])
    given_b, given_a = joint / joint.sum(axis=0), joint / joint.sum(axis=1, keepdims=True)
    bits = -sum(np.sum(joint[joint > 0] * np.log2(given[joint > 0])) for given in (given_a, given_b))
    assert variation_of_information(a, b) == pytest.approx(bits, abs=1e-9)
    best = max(np.mean(np.array(names)[a] == b) for names in permutations(range(4)))
    assert moved_fraction(a, b) == pytest.approx(1 - best)
    renamed = (np.arange(4)[::-1])[a]
    assert moved_fraction(renamed, b) == pytest.approx(1 - best)
    assert variation_of_information(a, a) == 0 and adjusted_rand(a, a) == 1


def test_adjusted_rand() -> None:
    """The textbook's formula, and 0 on average by chance."""
    a, b = partition([0, 0, 0, 1, 1, 1]), partition([0, 0, 1, 1, 2, 2])
    together = [(a[i] == a[j], b[i] == b[j]) for i, j in combinations(range(6), 2)]
    both, in_a, in_b = (sum(x) for x in ([p and q for p, q in together], *zip(*together, strict=True)))
    chance = in_a * in_b / 15
    assert adjusted_rand(a, b) == pytest.approx((both - chance) / ((in_a + in_b) / 2 - chance))
    rng = np.random.default_rng(0)
    drawn = [adjusted_rand(rng.integers(4, size=50), rng.integers(4, size=50)) for _ in range(200)]
    assert abs(np.mean(drawn)) < 0.01


def test_ensemble() -> None:
    one, two, three = partition([0, 0, 1, 1]), partition([0, 0, 1, 2]), partition([0, 1, 2, 2])
    agreed = agreement([one, two, three])
    assert agreed.medoid == 0
    assert agreed.information[0].tolist() == pytest.approx([0, 0.5, 0.5])
    assert co_membership([one, two, three], np.array([0, 1, 3])).tolist() == pytest.approx(
        np.array([[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 1]])
    )
    assert stability(one, [two, three]).tolist() == [0.75, 0.75]
    assert stability(one, []).tolist() == [1, 1]


def test_groups_of_two_runs() -> None:
    fires = np.random.default_rng(1).random((200, 4)) < 0.3
    similarity = jaccard(from_dense(fires), from_dense(fires[:, [2, 0, 3]]))
    assert similarity[1, 0] == pytest.approx((fires[:, 1] & fires[:, 2]).sum() / (fires[:, 1] | fires[:, 2]).sum())
    assert sorted(matched(similarity).tolist()) == [[0, 1], [2, 0], [3, 2]]
