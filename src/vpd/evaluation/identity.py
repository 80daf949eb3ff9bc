"""How far a matrix of causal importances is from the pattern it should have: identity or dense (method.md §10)."""

import numpy as np
from jaxtyping import Bool, Float, Int

Matrix = Float[np.ndarray, "n_features C"]


def match_columns(ci: Matrix) -> Int[np.ndarray, " C"]:
    """Order of the subcomponents in which the trace is largest; matched ones first, then the rest by their sum."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    rows, columns = linear_sum_assignment(-ci.astype(np.float64))
    order = np.full(ci.shape[0], -1)
    order[rows] = columns
    matched = order[order >= 0]
    rest = np.setdiff1d(np.arange(ci.shape[1]), matched)
    return np.concatenate([matched, rest[np.argsort(-ci[:, rest].sum(axis=0), kind="stable")]])


def densest_columns(ci: Matrix) -> Int[np.ndarray, " C"]:
    """Order of the subcomponents by their sum, descending."""
    return np.argsort(-ci.sum(axis=0), kind="stable")


def identity_error(ci: Matrix, tolerance: float = 0.1) -> int:
    """Off-diagonal entries above the tolerance plus diagonal ones below 1 − tolerance, after optimal assignment.

    Surplus columns count as off the diagonal.

    Args:
        ci: row i is the response to feature i alone.
        tolerance: 0.1 by convention, 0.2 where it is reported beside it.
    """
    permuted = ci[:, match_columns(ci)]
    diagonal: Bool[np.ndarray, "n_features C"] = np.eye(*permuted.shape, dtype=bool)
    # Fewer subcomponents than features: the features left without one are errors, too.
    unmatched = max(0, ci.shape[0] - ci.shape[1])
    return int(np.sum(permuted[~diagonal] > tolerance) + np.sum(permuted[diagonal] < 1 - tolerance) + unmatched)


def dense_error(ci: Matrix, k: int, tolerance: float = 0.1) -> int:
    """One error per densest-k column without an entry ≥ 1 − tolerance, plus one per entry above it in the rest."""
    permuted = ci[:, densest_columns(ci)]
    return int(np.sum(~np.any(permuted[:, :k] >= 1 - tolerance, axis=0)) + np.sum(permuted[:, k:] > tolerance))
