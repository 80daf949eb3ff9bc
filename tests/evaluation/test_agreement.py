"""Matchings against closed forms: identical, permuted and rescaled, replaced, and missing subcomponents."""

import math

import numpy as np
import pytest

from vpd.evaluation.agreement import MEASURES, Pieces, agreements, cosines, pareto_front

# Float64 cosines of float32 pieces, and sums of a few of them.
TOLERANCE = 1e-6


def pieces(seed: int = 0, n: int = 6, d_in: int = 9, d_out: int = 7) -> Pieces:
    rng = np.random.default_rng(seed)
    return Pieces(rng.standard_normal((d_in, n)).astype(np.float32), rng.standard_normal((n, d_out)).astype(np.float32))


def orthogonal(n: int) -> Pieces:
    """V and U are the first n unit vectors of eight."""
    eye = np.eye(8, dtype=np.float32)
    return Pieces(eye[:, :n], eye[:n])


def without(p: Pieces, *dropped: int) -> Pieces:
    kept = [c for c in range(p.n) if c not in dropped]
    return Pieces(p.V[:, kept], p.U[kept])


def test_identical_runs_agree() -> None:
    for found in agreements(pieces(), pieces()).values():
        assert found.matched == pytest.approx(1.0, abs=TOLERANCE) and found.covering == pytest.approx(1.0)
        assert found.first.tolist() == found.second.tolist() == list(range(6))


def test_permuted_rescaled_and_flipped_runs_agree() -> None:
    a = pieces()
    order, scale = np.array([3, 0, 5, 1, 4, 2]), np.array([2.0, -0.5, 1e-3, -7.0, 1e6, 0.1], np.float32)
    b = Pieces(a.V[:, order] * scale, a.U[order] / scale[:, None])
    for found in agreements(a, b).values():
        assert found.covering == pytest.approx(1.0, abs=TOLERANCE)
        assert order[found.second].tolist() == found.first.tolist()


def test_the_opposite_matrix_is_not_the_same_one() -> None:
    """One factor flipped is another matrix: V and U agree as directions, the rank-one matrices do not."""
    a = orthogonal(1)
    found = agreements(a, Pieces(-a.V, a.U))
    assert (found["V"].matched, found["U"].matched, found["rank_one"].matched) == pytest.approx((1, 1, -1))


@pytest.mark.parametrize("angle", [0.3, 1.0, math.pi / 2])
def test_one_turned_column_drops_by_its_cosine(angle: float) -> None:
    a = orthogonal(5)
    V = a.V.copy()
    V[:, 2] = 0
    V[2, 2], V[7, 2] = math.cos(angle), math.sin(angle)
    found = agreements(a, Pieces(V, a.U))
    expected = (4 + math.cos(angle)) / 5
    assert found["V"].covering == found["V"].matched == pytest.approx(expected, abs=TOLERANCE)
    assert found["rank_one"].covering == pytest.approx(expected, abs=TOLERANCE)
    assert found["U"].covering == pytest.approx(1.0, abs=TOLERANCE)


def test_the_matching_is_the_best_in_total_not_greedy() -> None:
    """The closest pair would leave nothing for the rest."""
    a = Pieces(np.eye(3)[:, :2], np.ones((2, 1)))
    turned = Pieces(np.array([[0.75, 0.65], [0.65, 0.0], [0.12, 0.76]]), np.ones((2, 1)))
    similarity = cosines(a.V.T, turned.V.T)
    found = agreements(a, turned)["V"]
    assert np.unravel_index(similarity.argmax(), (2, 2)) == (0, 0)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert found.matched == pytest.approx((similarity[0, 1] + similarity[1, 0]) / 2)


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 3), (3, 5), (5, 5), (4, 1)])
def test_what_has_no_partner_counts_zero_in_the_covering_figure(n_a: int, n_b: int) -> None:
    for found in agreements(orthogonal(n_a), orthogonal(n_b)).values():
        assert found.live == (n_a, n_b)
        assert found.matched == pytest.approx(1.0)
        assert found.covering == pytest.approx(min(n_a, n_b) / max(n_a, n_b))
        assert found.curve.tolist() == pytest.approx([1.0] * min(n_a, n_b) + [0.0] * abs(n_a - n_b))


def test_a_split_subcomponent_is_not_agreement() -> None:
    a = orthogonal(4)
    split = Pieces(np.concatenate([a.V, a.V[:, :1]], axis=1), np.concatenate([a.U / 2, a.U[:1] / 2]))
    found = agreements(a, split)["rank_one"]
    assert (found.matched, found.covering) == pytest.approx((1.0, 4 / 5))


def test_nothing_live() -> None:
    nothing = without(orthogonal(2), 0, 1)
    for found in agreements(nothing, orthogonal(2)).values():
        assert math.isnan(found.matched) and found.covering == 0.0
    for found in agreements(nothing, nothing).values():
        assert math.isnan(found.matched) and math.isnan(found.covering) and found.curve.size == 0


def test_zeros_and_tiny_pieces_stay_finite() -> None:
    a = orthogonal(3)
    tiny = Pieces(a.V * np.float32(1e-30), a.U * np.float32(1e-30))
    assert agreements(a, tiny)["rank_one"].covering == pytest.approx(1.0)
    V = a.V.copy()
    V[:, 0] = 0
    assert agreements(a, Pieces(V, a.U))["rank_one"].covering == pytest.approx(2 / 3)


def test_agreement_is_symmetric() -> None:
    a, b = pieces(1, n=6), pieces(2, n=4)
    one, other = agreements(a, b), agreements(b, a)
    for measure in MEASURES:
        assert one[measure].covering == pytest.approx(other[measure].covering, abs=TOLERANCE)


def test_rank_one_is_the_frobenius_cosine() -> None:
    a, b = pieces(3, n=1), pieces(4, n=1)
    A, B = (p.V.astype(float) @ p.U.astype(float) for p in (a, b))
    expected = np.sum(A * B) / np.linalg.norm(A) / np.linalg.norm(B)
    assert agreements(a, b)["rank_one"].matched == pytest.approx(expected, abs=TOLERANCE)


def test_pareto_front() -> None:
    points = np.array([[1, 5], [2, 3], [2, 4], [3, 3], [4, 1], [4, 1], [0.5, 6], [5, 0.5]], float)
    assert pareto_front(points).tolist() == [True, True, False, False, True, True, True, True]


@pytest.mark.parametrize("seed", range(5))
def test_pareto_front_by_definition(seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (30, 2)).astype(float)
    front = pareto_front(points)
    for i, p in enumerate(points):
        better = any((q <= p).all() and (q < p).any() for q in points)
        assert front[i] == (not better)


def test_one_point_is_the_front() -> None:
    assert pareto_front(np.array([[1.0, 2.0]])).tolist() == [True]
