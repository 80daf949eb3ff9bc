"""Do two decompositions of one matrix consist of the same subcomponents? An optimal matching and its cosines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Measure = Literal["V", "U", "rank_one"]
MEASURES: tuple[Measure, ...] = ("rank_one", "V", "U")


@dataclass(frozen=True)
class Pieces:
    """The live subcomponents of one site of one run.

    Attributes:
        V: read directions ``[d_in, n]``.
        U: write directions ``[n, d_out]``.
    """

    V: Float[np.ndarray, "d_in n"]
    U: Float[np.ndarray, "n d_out"]

    @property
    def n(self) -> int:
        """How many."""
        return self.V.shape[1]


@dataclass(frozen=True)
class Agreement:
    """An optimal one-to-one matching between the live subcomponents of two runs at one site.

    Attributes:
        first: indices among the first run's pieces, ``min(n_a, n_b)`` of them.
        second: their partners among the second run's.
        cosines: of each matched pair.
        live: numbers of pieces, n_a and n_b.
    """

    first: Int[np.ndarray, " matched"]
    second: Int[np.ndarray, " matched"]
    cosines: Float[np.ndarray, " matched"]
    live: tuple[int, int]

    @property
    def matched(self) -> float:
        """Mean cosine over the matched pairs (MMCS); NaN where nothing is matched. Blind to what has no partner."""
        return float(np.mean(self.cosines)) if self.cosines.size else float("nan")

    @property
    def covering(self) -> float:
        """Sum of the matched cosines over max(n_a, n_b): what has no partner counts 0. NaN where both have nothing."""
        largest = max(self.live)
        return float(np.sum(self.cosines)) / largest if largest else float("nan")

    @property
    def curve(self) -> Float[np.ndarray, " largest"]:
        """Cosines in falling order, 0 for each subcomponent without a partner."""
        alone = np.zeros(max(self.live) - self.cosines.size)
        return np.sort(np.concatenate([self.cosines, alone]))[::-1]


def agreements(a: Pieces, b: Pieces) -> Mapping[Measure, Agreement]:
    """The best matching under each measure.

    ``V`` and ``U`` compare directions, whatever their sign. ``rank_one`` is the Frobenius cosine of
    ``V[:, i] ⊗ U[i, :]`` with ``V[:, j] ⊗ U[j, :]``, the product of the two signed cosines: it doesn't see how a
    subcomponent's scale and sign are shared between V and U, and is −1 for the opposite matrix.
    """
    reads, writes = cosines(a.V.T, b.V.T), cosines(a.U, b.U)
    similarity: dict[Measure, np.ndarray] = {"rank_one": reads * writes, "V": np.abs(reads), "U": np.abs(writes)}
    return {measure: _matched(similarity[measure]) for measure in MEASURES}


def cosines(a: Float[np.ndarray, "n_a d"], b: Float[np.ndarray, "n_b d"]) -> Float[np.ndarray, "n_a n_b"]:
    """Signed cosine of every row of the one with every row of the other; 0 for a row of zeros."""
    return _unit(a) @ _unit(b).T


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    # Scaled first: the square of a small entry would underflow.
    rows = rows / np.maximum(np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _matched(similarity: Float[np.ndarray, "n_a n_b"]) -> Agreement:
    from scipy.optimize import linear_sum_assignment  # slow to import

    first, second = linear_sum_assignment(similarity, maximize=True)
    n_a, n_b = similarity.shape
    return Agreement(first, second, similarity[first, second], (n_a, n_b))


def pareto_front(points: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Which points no other is better than: none is as low on every axis and lower on one.

    Args:
        points: finite; lower is better on every axis.

    Returns:
        Booleans ``[n]``; equal points are on the front together.
    """
    as_low = np.all(points[:, None] <= points[None, :], axis=-1)
    lower = np.any(points[:, None] < points[None, :], axis=-1)
    return ~np.any(as_low & lower, axis=0)
