"""The groups of a partition on their way to one, with how often each pair of them fires together."""

import numpy as np
from jaxtyping import Int

from vpd.analysis.clustering.memberships import Memberships

_GONE = -1
_PART = 16384


class Groups:
    """Groups that are merged two at a time; every count stays exact.

    A group has a *slot*; slots are in the order of the groups' smallest members, and a union keeps the smaller of two.
    Slots without a group stay behind until :meth:`compact`, which keeps the order of the others.

    The union of a and b fires together with a third group as often as a does and as b does, less the positions at which
    all three fire; these are looked for only where both a and b fire (or only where not, if that is less). Each place
    where both do is one firing less afterwards, so all merges together look at no more places than there are firings
    to begin with: the whole way to one group costs about as much as counting coactivation once.

    Attributes:
        positions: number of positions.
        together: ``[slots, slots]``, positions at which two groups fire, and on the diagonal each one alone.
        fires: ``[slots]``, positions at which a group fires.
        size: ``[slots]``, its members.
        alive: slots that hold a group, ascending.
        first: the smallest subcomponent of the group of each slot.
    """

    def __init__(self, memberships: Memberships, together: Int[np.ndarray, "n n"]) -> None:
        """Every subcomponent alone; the coactivation is copied."""
        n = memberships.n
        self.positions = memberships.positions
        self.together = together.astype(np.int32)
        self.fires = np.diagonal(together).astype(np.float64)
        self.size = np.ones(n)
        self.alive = np.arange(n)
        self.first = np.arange(n)
        self._starts, self._slots = memberships.starts, memberships.fired.astype(np.int32)
        self._marked = np.zeros(self.positions, bool)
        self._index()

    def _index(self) -> None:
        """Of each slot: its firings as places in the list of all, and their positions."""
        by_slot = np.argsort(self._slots, kind="stable")
        at = np.repeat(np.arange(self.positions, dtype=np.int32), np.diff(self._starts))
        bounds = np.cumsum(np.bincount(self._slots, minlength=len(self.size)))[:-1]
        self._places = np.split(by_slot, bounds)
        self._at = np.split(at[by_slot], bounds)

    @property
    def k(self) -> int:
        """Number of groups."""
        return len(self.alive)

    @property
    def total(self) -> float:
        """Firings of all groups."""
        return float(self.fires[self.alive].sum())

    def counts(self) -> Int[np.ndarray, "k k"]:
        """How often groups fire together, without the slots that are left behind."""
        return self.together[np.ix_(self.alive, self.alive)]

    def sizes(self) -> Int[np.ndarray, " k"]:
        """Members of each group."""
        return self.size[self.alive].astype(np.int64)

    def merge(self, a: int, b: int) -> None:
        """Merge the groups of two slots, a < b, into slot a."""
        row = self.together[a] + self.together[b] - self._all_three(a, b)
        self.size[a] += self.size[b]
        self.fires[a] += self.fires[b] - self.together[a, b]
        row[a] = self.fires[a]
        self.together[a] = self.together[:, a] = row
        self.alive = self.alive[self.alive != b]

    def compact(self) -> None:
        """Leave out the slots without a group; the others move up, in their order."""
        number = np.full(len(self.size), _GONE, np.int32)
        number[self.alive] = np.arange(self.k, dtype=np.int32)
        self.together = self.counts()
        self.fires, self.size, self.first = self.fires[self.alive], self.size[self.alive], self.first[self.alive]
        kept = self._slots != _GONE
        self._starts = np.concatenate([[0], np.cumsum(kept)])[self._starts]
        self._slots = number[self._slots[kept]]
        self.alive = np.arange(self.k)
        self._index()

    def _all_three(self, a: int, b: int) -> Int[np.ndarray, " slots"]:
        """Positions at which a, b and each group fire; the firings of b become a's, where a does not fire already."""
        self._marked[self._at[a]] = True
        both = self._marked[self._at[b]]
        self._marked[self._at[a]] = False
        shared, places = self._at[b][both], self._places[b]
        if 2 * len(shared) <= self.positions:
            counted = self._firings_at(shared)
        else:
            self._marked[shared] = True
            counted = self.fires.astype(np.int64) - self._firings_at(np.flatnonzero(~self._marked))
            self._marked[shared] = False
        self._slots[places] = a
        self._slots[places[both]] = _GONE
        self._places[a] = np.concatenate([self._places[a], places[~both]])
        self._at[a] = np.concatenate([self._at[a], self._at[b][~both]])
        self._places[b], self._at[b] = places[:0], shared[:0]
        return counted.astype(np.int32)

    def _firings_at(self, positions: Int[np.ndarray, " m"]) -> Int[np.ndarray, " slots"]:
        """How often each group fires at some positions."""
        slots = len(self.size)
        counted = np.zeros(slots, np.int64)
        # In parts, so that many positions do not need all their firings at once.
        for part in np.array_split(positions, 1 + len(positions) // _PART):
            found = self._slots[_ranges(self._starts[part], self._starts[part + 1])]
            counted += np.bincount(found + 1, minlength=slots + 1)[1:]
        return counted


def _ranges(starts: Int[np.ndarray, " n"], stops: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """The whole numbers of several half-open intervals, one interval after the other."""
    lengths = stops - starts
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - begins, lengths)
