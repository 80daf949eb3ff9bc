"""Ground truth and identity errors: planted answers, and re-computations that share no code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpd.evaluation.ground_truth import live_subcomponents, match_features
from vpd.evaluation.identity import dense_error, densest_columns, identity_error, match_columns
from vpd.evaluation.l0 import group_sites

RNG = np.random.default_rng(0)


def planted(n: int, h: int, C: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A weight, V and U that carry it exactly with one subcomponent a feature, and which of them do."""
    W = RNG.normal(size=(n, h)).astype(np.float32)
    chosen = RNG.permutation(C)[:n]
    V, U = np.zeros((n, C), np.float32), RNG.normal(size=(C, h)).astype(np.float32)
    scale = RNG.uniform(0.5, 2, n).astype(np.float32)
    V[np.arange(n), chosen] = scale
    U[chosen] = W / scale[:, None]
    return W, V, U, chosen


@pytest.mark.parametrize("features", ["rows", "columns"])
def test_planted_truth_is_found(features: str) -> None:
    W, V, U, chosen = planted(6, 3, 11)
    live = np.isin(np.arange(11), chosen)
    given_arrays = (W, V, U) if features == "rows" else (W.T, U.T, V.T)
    match = match_features(*given_arrays, live, features)
    assert match.recovered == 6 and match.live == 6
    np.testing.assert_array_equal(match.subcomponent, chosen)
    np.testing.assert_allclose([match.mmcs, match.rank_one_mmcs, match.ml2r], 1, atol=1e-6)


def test_a_dead_subcomponent_wins_nothing() -> None:
    W, V, U, chosen = planted(4, 3, 8)
    live = np.isin(np.arange(8), chosen[1:])
    match = match_features(W, V, U, live, "rows")
    assert match.recovered == 3 and match.live == 3
    none = match_features(W, V, U, np.zeros(8, bool), "rows")
    assert none.mmcs == none.ml2r == 0 and none.recovered == 0


def test_a_shared_subcomponent_recovers_one_feature_at_most() -> None:
    W = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    V, U = np.array([[1.0], [-1.0]], np.float32), np.array([[1.0, 0.0]], np.float32)
    match = match_features(W, V, U, np.ones(1, bool), "rows")
    assert match.mmcs == pytest.approx(1)
    assert match.rank_one_mmcs == pytest.approx(1 / np.sqrt(2))
    assert match.recovered == 0


def test_cosines_against_explicit_matrices() -> None:
    W, V, U = (RNG.normal(size=s).astype(np.float32) for s in ((5, 3), (5, 7), (7, 3)))
    live = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    match = match_features(W, V, U, live, "rows")
    for j in range(5):
        cosines = {}
        for c in np.flatnonzero(live):
            p = V[j, c] * U[c]
            cosines[c] = p @ W[j] / np.linalg.norm(p) / np.linalg.norm(W[j])
        assert match.cosine[j] == pytest.approx(max(cosines.values()), abs=1e-6)
        c = match.subcomponent[j]
        alone = np.zeros_like(W)
        alone[j] = W[j]
        piece = np.outer(V[:, c], U[c])
        frobenius = np.sum(piece * alone) / np.linalg.norm(piece) / np.linalg.norm(alone)
        assert match.rank_one[j] == pytest.approx(frobenius, abs=1e-6)
        assert match.norm_ratio[j] == pytest.approx(np.linalg.norm(V[j, c] * U[c]) / np.linalg.norm(W[j]), rel=1e-5)


@given(seed=st.integers(0, 2**16), n=st.integers(1, 6), extra=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_identity_error_ignores_order_and_counts_faults(seed: int, n: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    ci = np.zeros((n, n + extra), np.float32)
    ci[np.arange(n), np.arange(n)] = rng.uniform(0.91, 1, n)
    shuffled = ci[:, rng.permutation(n + extra)]
    assert identity_error(shuffled) == 0
    shuffled[:, match_columns(shuffled)[0]] = 0
    assert identity_error(shuffled) == 1
    if extra:
        surplus = ci.copy()
        surplus[0, n] = 0.5
        assert identity_error(surplus) == 1


def test_too_few_subcomponents_are_errors() -> None:
    assert identity_error(np.eye(4, 3, dtype=np.float32)) == 1


def test_dense_error() -> None:
    ci = np.zeros((5, 6), np.float32)
    ci[:, [1, 4]] = 0.95
    assert dense_error(ci, 2) == 0 and set(densest_columns(ci)[:2]) == {1, 4}
    ci[2, 0] = 0.15
    assert dense_error(ci, 2) == 1 and dense_error(ci, 2, 0.2) == 0
    assert dense_error(ci, 3) == 1


def test_live_and_groups() -> None:
    ci = np.array([[0.0, 0.1, 0.11], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(live_subcomponents(ci), [False, False, True])
    sites = ["h.1.mlp", "h.10.mlp", "h.2.attn"]
    assert group_sites(sites, {"one": ["h.1.*"], "all": ["*", "h.2.*"]}) == {"one": ["h.1.mlp"], "all": sites}
