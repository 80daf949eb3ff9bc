"""How often two subcomponents fire together: dense where that fits, sparse where it would not."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse import coo_array, csr_array

from vpd.analysis.harvest.blocks import padded, triangle
from vpd.analysis.harvest.one_pass import MOST_POSITIONS, Seen, co_counts, fires_in
from vpd.analysis.harvest.sparse import SparseCounts

# A dense array of counts may take so many bytes.
DENSE_BYTES = 1 << 30
# Positions of several batches are multiplied together: so many bytes as float32.
WAITING_BYTES = 1 << 29
# Firings that wait before they are multiplied with each other, where counts are sparse.
PENDING = 1 << 22
# Where more than this part of all subcomponents fires, none is left out.
MOST = 0.7


class CoFiring:
    """Counts of all pairs, of a subcomponent with itself too."""

    def __init__(self, n: int, dense_bytes: int = DENSE_BYTES) -> None:
        """Nothing has fired."""
        self._n = n
        self._dense = np.zeros((n, n), np.int64) if n * n * 8 <= dense_bytes else None
        self._active = np.zeros(n, bool)
        self._fires: list[Bool[Array, "N n"]] = []
        self._sparse = SparseCounts((n, n))
        self._pending: list[csr_array] = []
        self._waiting = 0

    def add(
        self,
        seen: Seen,
        threshold: Float[np.ndarray, ""],
        active: Int[np.ndarray, " k"],
        positions: Int[np.ndarray, " m"],
        fired: Int[np.ndarray, " m"],
    ) -> None:
        """A batch.

        Args:
            seen: what it shows.
            threshold: a subcomponent fires above it.
            active: those that fire anywhere in it.
            positions: where each firing is.
            fired: and of which subcomponent.
        """
        N = int(np.prod(seen.importances.shape[:2]))
        if self._dense is not None:
            self._fires.append(fires_in(seen.importances, jnp.asarray(threshold)))
            self._active[active] = True
            after = (len(self._fires) + 1) * N
            if after * self._n * 4 > WAITING_BYTES or after > MOST_POSITIONS:
                self._sum_up()
            return
        ones = np.ones(len(fired), np.int64)
        self._pending.append(csr_array(coo_array((ones, (positions, fired)), shape=(N, self._n))))
        self._waiting += len(fired)
        if self._waiting > PENDING:
            self._sum_up()

    def _sum_up(self) -> None:
        """Count what waits. Of dense counts only those of ``i ≤ j`` and a few others are kept up to date."""
        for fires in self._pending:
            self._sparse.add(csr_array(fires.T @ fires))
        self._pending, self._waiting = [], 0
        if self._dense is None or not self._fires:
            return
        ids = np.flatnonzero(self._active)
        everyone = len(ids) > MOST * self._n
        ids = np.arange(self._n) if everyone else ids
        for part, rest in triangle(ids):
            found = co_counts(tuple(self._fires), jnp.asarray(padded(part)), jnp.asarray(padded(rest)))
            counts = np.asarray(found)[: len(part), : len(rest)]
            if everyone:
                self._dense[part[0] : part[-1] + 1, part[0] :] += counts
            else:
                self._dense[np.ix_(part, rest)] += counts
        self._fires = []
        self._active[:] = False

    def merge(self, other: "CoFiring") -> None:
        """Add what another pass has counted."""
        self._sum_up()
        other._sum_up()
        if self._dense is not None and other._dense is not None:
            self._dense += other._dense
        else:
            self._sparse.add(other.matrix())

    def matrix(self) -> csr_array:
        """The counts, both of a pair ``(i, j)`` and of ``(j, i)``."""
        self._sum_up()
        if self._dense is None:
            return self._sparse.matrix()
        upper = csr_array(np.triu(self._dense))
        return csr_array(upper + csr_array(np.triu(self._dense, 1)).T)

    def save(self, folder: Path) -> None:
        """For :meth:`load`."""
        self._sum_up()
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
