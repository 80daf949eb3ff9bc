"""Counts of pairs that are mostly zero, added up without ever being dense."""

from pathlib import Path

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array, csr_array

# So many additions wait before they are summed into the matrix.
PENDING = 1 << 22


class SparseCounts:
    """A sparse matrix of int64 counts."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """All zero."""
        self._sum = csr_array(shape, dtype=np.int64)
        self._pending: list[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]] = []
        self._waiting = 0

    def add_pairs(self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " m"]) -> None:
        """One for each pair."""
        self._pending.append((rows, columns))
        self._waiting += len(rows)
        if self._waiting > PENDING:
            self.matrix()

    def add(self, matrix: csr_array) -> None:
        """A matrix of counts."""
        self._sum = csr_array(self._sum + matrix)

    def matrix(self) -> csr_array:
        """The sums so far."""
        if self._pending:
            rows, columns = (np.concatenate(part) for part in zip(*self._pending, strict=True))
            ones = np.ones(len(rows), np.int64)
            self.add(csr_array(coo_array((ones, (rows, columns)), shape=self._sum.shape)))
            self._pending, self._waiting = [], 0
        return self._sum

    def save(self, folder: Path, name: str) -> None:
        """As three arrays."""
        matrix = self.matrix()
        for part in ("data", "indices", "indptr"):
            np.save(folder / f"{name}.{part}.npy", getattr(matrix, part))

    def load(self, folder: Path, name: str) -> None:
        """What :meth:`save` wrote."""
        parts = (np.load(folder / f"{name}.{part}.npy") for part in ("data", "indices", "indptr"))
        self._sum = csr_array(tuple(parts), shape=self._sum.shape)
