"""Which subcomponents fire at which positions, kept sparsely, and how often two do together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csr_array

# A product of sparse matrices takes so many times longer a multiplication than one of dense ones.
_SPARSE_PRICE = 200
_ROWS = 4096


@dataclass(frozen=True)
class Memberships:
    """Firings of n subcomponents at some positions, by position.

    Attributes:
        starts: where each position's firings begin in ``fired``, and where the last ones end.
        fired: the subcomponents that fire, ascending within each position.
        n: number of subcomponents.
    """

    starts: Int[np.ndarray, " positions_plus_1"]
    fired: Int[np.ndarray, " firings"]
    n: int

    @property
    def positions(self) -> int:
        """Number of positions."""
        return len(self.starts) - 1

    @cached_property
    def counts(self) -> Int[np.ndarray, " n"]:
        """Positions at which each subcomponent fires."""
        return np.bincount(self.fired, minlength=self.n)

    def only(self, kept: Int[np.ndarray, " m"]) -> "Memberships":
        """Those of some subcomponents, numbered anew in the order given, which ascends."""
        number = np.full(self.n, -1, np.int32)
        number[kept] = np.arange(len(kept), dtype=np.int32)
        fired = number[self.fired]
        ends = np.concatenate([[0], np.cumsum(fired >= 0)])[self.starts]
        return Memberships(ends, fired[fired >= 0], len(kept))

    def grouped(self, labels: Int[np.ndarray, " n"]) -> "Memberships":
        """Firings of groups: a group fires where any of its members does.

        Args:
            labels: the group of each subcomponent, from 0.
        """
        groups = int(labels.max()) + 1
        at = np.repeat(np.arange(self.positions), np.diff(self.starts))
        once = np.unique(at * groups + labels[self.fired])
        return from_pairs(once // groups, once % groups, self.positions, groups)

    def matrix(self, dtype: type = np.int32) -> csr_array:
        """Positions down, subcomponents across, 1 where one fires."""
        ones = np.ones(len(self.fired), dtype)
        return csr_array((ones, self.fired, self.starts), shape=(self.positions, self.n))

    def coactivation(self) -> Int[np.ndarray, "n n"]:
        """Positions at which two subcomponents fire together; on the diagonal those at which each one does."""
        lengths = np.diff(self.starts).astype(np.float64)
        if _SPARSE_PRICE * float(np.sum(lengths**2)) > self.positions * self.n**2:
            return self._coactivation_densely()
        matrix = self.matrix()
        across = matrix.T.tocsr()
        together = np.empty((self.n, self.n), np.int32)
        for first in range(0, self.n, 512):
            rows = slice(first, min(first + 512, self.n))
            together[rows] = (across[rows] @ matrix).toarray()
        return together

    def _coactivation_densely(self) -> Int[np.ndarray, "n n"]:
        """Blocks of positions as dense matrices: float32 counts up to 2^24 exactly, and a block is shorter."""
        together = np.zeros((self.n, self.n), np.int32)
        matrix = self.matrix(np.float32)
        for first in range(0, self.positions, _ROWS):
            block = matrix[first : first + _ROWS].toarray()
            together += (block.T @ block).astype(np.int32)
        return together


def from_dense(fires: Bool[np.ndarray, "positions n"]) -> Memberships:
    """Memberships of a boolean array."""
    at, which = np.nonzero(fires)
    return from_pairs(at, which, *fires.shape)


def from_pairs(
    at: Int[np.ndarray, " firings"], which: Int[np.ndarray, " firings"], positions: int, n: int
) -> Memberships:
    """Memberships of pairs of position and subcomponent, sorted by both, none twice."""
    ends = np.cumsum(np.bincount(at, minlength=positions))
    return Memberships(np.concatenate([[0], ends]), which.astype(np.int32), n)


def joined(parts: Sequence[Memberships]) -> Memberships:
    """Memberships of the same subcomponents at positions one part after the other."""
    starts = np.concatenate([[0], *(part.starts[1:] - part.starts[0] for part in parts)])
    offsets = np.cumsum([0, *(len(part.fired) for part in parts)])[:-1]
    starts[1:] += np.repeat(offsets, [part.positions for part in parts])
    return Memberships(starts, np.concatenate([part.fired for part in parts]), parts[0].n)
