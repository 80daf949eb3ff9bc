"""How often two subcomponents fire together, with those that fire often apart from those that fire rarely.

Of F ``[positions, n]``, whether each fires, the product ``Fᵀ F`` is wanted. Columns that are often 1 are multiplied as
dense ones, the others as sparse ones: either way alone takes several times the operations.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from vpd.analysis.harvest.sparse import SparseCounts

# A dense array of counts may take so many bytes.
DENSE_BYTES = 1 << 30
# So many firings, or positions, wait before they are multiplied with each other.
PENDING, POSITIONS = 1 << 22, 1 << 15
# A subcomponent that fires at this part of the positions fires often.
OFTEN = 1 / 24


class CoFiring:
    """Counts of all pairs, of a subcomponent with itself too."""

    def __init__(self, n: int, dense_bytes: int = DENSE_BYTES) -> None:
        """Nothing has fired.

        Args:
            n: number of subcomponents.
            dense_bytes: a dense array of counts that takes more is never made.
        """
        self._n = n
        self._dense = np.zeros((n, n), np.int64) if n * n * 8 <= dense_bytes else None
        self._sparse = SparseCounts((n, n))
        self._pending: list[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]] = []
        self._positions = 0

    def add(self, positions: int, at: Int[np.ndarray, " m"], fired: Int[np.ndarray, " m"]) -> None:
        """A batch.

        Args:
            positions: how many it has.
            at: position of each firing in the batch.
            fired: of which subcomponent it is.
        """
        self._pending.append((at + self._positions, fired))
        self._positions += positions
        if self._positions >= POSITIONS or sum(len(fired) for _, fired in self._pending) > PENDING:
            self._multiply()

    def _multiply(self) -> None:
        """Count what waits."""
        if not self._pending:
            return
        at, fired = (np.concatenate(part) for part in zip(*self._pending, strict=True))
        counts, positions = np.bincount(fired, minlength=self._n), self._positions
        self._pending, self._positions = [], 0
        often = np.flatnonzero(counts > positions * OFTEN)
        number = np.full(self._n, -1)
        number[often] = np.arange(len(often))
        is_often = number[fired] >= 0
        # Zeros and ones: sums are exact in float32 up to 2^24, which is more than the positions that wait.
        heavy = np.zeros((positions, len(often)), np.float32)
        heavy[at[is_often], number[fired[is_often]]] = 1
        rare_at, rare_fired = at[~is_often], fired[~is_often]
        ones = np.ones(len(rare_at), np.float32)
        light = csr_array(coo_array((ones, (rare_at, rare_fired)), shape=(positions, self._n)))
        rare = np.flatnonzero((counts > 0) & (number < 0))
        self._put_block(often, often, heavy.T @ heavy)
        between = np.asarray(csr_array(light.T)[rare] @ heavy)
        self._put_block(rare, often, between)
        self._put_block(often, rare, between.T)
        self._put_sparse(csr_array(light.T @ light))

    def _put_block(
        self, rows: Int[np.ndarray, " k"], columns: Int[np.ndarray, " l"], counts: Float[np.ndarray, "k l"]
    ) -> None:
        if self._dense is not None:
            self._dense[np.ix_(rows, columns)] += counts.astype(np.int32)
            return
        i, j = np.nonzero(counts)
        whole = counts[i, j].astype(np.int64)
        self._sparse.add(csr_array(coo_array((whole, (rows[i], columns[j])), shape=(self._n, self._n))))

    def _put_sparse(self, counts: csr_array) -> None:
        if self._dense is not None:
            pairs = coo_array(counts)
            self._dense[pairs.row, pairs.col] += pairs.data.astype(np.int64)
        else:
            self._sparse.add(csr_array(counts.astype(np.int64)))

    def merge(self, other: "CoFiring") -> None:
        """Add what another pass has counted."""
        self._multiply()
        other._multiply()
        if self._dense is not None and other._dense is not None:
            self._dense += other._dense
        else:
            self._sparse.add(other.matrix())

    def matrix(self) -> csr_array:
        """The counts, both of a pair ``(i, j)`` and of ``(j, i)``."""
        self._multiply()
        return self._sparse.matrix() if self._dense is None else csr_array(self._dense)

    def save(self, folder: Path) -> None:
        """For :meth:`load`."""
        self._multiply()
        if self._dense is not None:
            np.save(folder / "cofiring.npy", self._dense)
        else:
            self._sparse.save(folder, "cofiring")

    def load(self, folder: Path) -> None:
        """What :meth:`save` wrote, with the same bound on what is dense."""
        if self._dense is not None:
            self._dense = np.load(folder / "cofiring.npy")
        else:
            self._sparse.load(folder, "cofiring")
