"""The pairs of lowest cost, kept through merges without looking at all pairs again."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

import numpy as np
from jaxtyping import Bool, Float, Int

from vpd.analysis.clustering.cost import pair_bases, pair_scores
from vpd.analysis.clustering.groups import Groups
from vpd.analysis.clustering.samplers import Ranked

_BLOCK = 100_000  # pairs scored at a time: what stays in the cache of a core
_COMPACT = 0.7  # of the slots must hold a group
_SPARE = 4  # pairs kept for each that is needed, and for each group


@dataclass(frozen=True)
class _Front:
    """Pairs with what their scores are made from."""

    a: Int[np.ndarray, " m"]
    b: Int[np.ndarray, " m"]
    bases: Float[np.ndarray, " m"]
    together: Int[np.ndarray, " m"]

    def ranked(self, groups: int) -> Ranked:
        return Ranked(self.a, self.b, pair_scores(self.bases, self.together, groups))

    def where(self, kept: Bool[np.ndarray, " m"] | Int[np.ndarray, " _k"]) -> "_Front":
        return _Front(self.a[kept], self.b[kept], self.bases[kept], self.together[kept])

    def plus(self, other: "_Front") -> "_Front":
        both = ((self.a, other.a), (self.b, other.b), (self.bases, other.bases), (self.together, other.together))
        return _Front(*(np.concatenate(pair) for pair in both))


class Frontier:
    """The front part of all pairs in their order, with a bound behind which the others are.

    The score of a pair never falls from one merge to the next (:mod:`.cost`), and the order of groups by their smallest
    member does not change. So a pair that once was behind the bound stays there; the front part loses the pairs of the
    two merged groups and gains those of the union that come before the bound. Only when too few are left, all pairs are
    looked at once more.

    Attributes:
        groups: the partition.
        scans: how often all pairs were looked at.
    """

    def __init__(self, groups: Groups, alpha: float) -> None:
        """Nothing is looked at yet."""
        self.groups, self._alpha = groups, alpha
        self.scans = 0
        self._front: _Front | None = None
        self._bound: Ranked | None = None  # None: the front part is all there is
        self._wanted = 0
        self._most: Float[np.ndarray, " slots"] | None = None

    @property
    def k(self) -> int:
        """Number of groups."""
        return self.groups.k

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.groups.positions

    def lowest(self, m: int) -> Ranked:
        """The first m pairs, in order; all of them where there are fewer."""
        if self._front is not None:
            ranked = self._front.ranked(self.k)
            found = ranked.take(_first(ranked, m))
            if self._bound is None or (len(found.score) == m and not found.after(self._bound)[-1]):
                return found
        ranked = self._scan(m).ranked(self.k)
        return ranked.take(_first(ranked, m))

    def between(self, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Ranked:
        """Pairs by the ranks of their groups."""
        return self._pairs(self.groups.alive[i], self.groups.alive[j]).ranked(self.k)

    def highest(self) -> float:
        """The largest score of a pair: groups by an upper bound of theirs, until one reaches all other bounds."""
        groups = self.groups
        most = self._most = self._largest_of_each() if self._most is None else self._most
        best = -np.inf
        while True:
            slot = int(groups.alive[np.argmax(most[groups.alive])])
            if best >= most[slot]:
                return best
            row = self._pairs(np.full(groups.k - 1, slot), groups.alive[groups.alive != slot])
            most[slot] = exact = float(row.ranked(self.k).score.max())
            best = max(best, exact)

    def merge(self, a: int, b: int) -> None:
        """Merge the groups of two slots, a < b, and bring the front part up to date."""
        groups, before = self.groups, self.k
        groups.merge(a, b)
        if groups.k == 1:
            return
        others = groups.alive[groups.alive != a]
        union = self._pairs(np.minimum(a, others), np.maximum(a, others))
        ranked = union.ranked(self.k)
        if self._most is not None:
            fewer_bits = log2(before - 1) - log2(groups.k - 1)
            _raise(self._most, groups.fires, fewer_bits, a, others, ranked.score)
        front = self._front
        if front is None:
            return
        front = front.where((front.a != a) & (front.a != b) & (front.b != a) & (front.b != b))
        if self._bound is not None:
            union = union.where(~ranked.after(self._bound))
        self._front = front.plus(union)
        if len(self._front.a) > 2 * self._wanted:
            self._cut_back(self._front)

    def _pairs(self, a: Int[np.ndarray, " m"], b: Int[np.ndarray, " m"]) -> _Front:
        groups = self.groups
        together = groups.together[a, b]
        bases = pair_bases(together, groups.fires[a], groups.fires[b], groups.size[a], groups.size[b], self._alpha)
        return _Front(a.astype(np.int32), b.astype(np.int32), bases, together)

    def _cut_back(self, front: _Front) -> None:
        """Keep the first pairs of some, as many as wanted, with the last of them as the bound."""
        ranked = front.ranked(self.k)
        kept = _first(ranked, self._wanted)
        self._front, self._bound = front.where(kept), ranked.take(kept[-1:])

    def _scan(self, m: int) -> _Front:
        """Look at all pairs and keep more of the first ones than are needed now."""
        self.scans += 1
        if self.k < _COMPACT * len(self.groups.size):
            self._most = None if self._most is None else self._most[self.groups.alive]
            self.groups.compact()
        self._wanted = _SPARE * max(m, self.k)
        self._front = self._bound = None
        limit = np.inf
        for a, b, scores in self._blocks(np.inf):
            # A later pair of the same score as the bound comes after it.
            at = np.flatnonzero(scores < limit)
            part = self._pairs(a[at // len(b)], b[at % len(b)])
            self._front = part if self._front is None else self._front.plus(part)
            if len(self._front.a) > 2 * self._wanted:
                self._cut_back(self._front)
                assert self._bound is not None
                limit = float(self._bound.score[-1])
        assert self._front is not None
        return self._front

    def _largest_of_each(self) -> Float[np.ndarray, " slots"]:
        most = np.full(len(self.groups.size), -np.inf)
        for a, b, scores in self._blocks(-np.inf):
            most[a] = np.maximum(most[a], scores.max(axis=1))
            most[b] = np.maximum(most[b], scores.max(axis=0))
        return most

    def _blocks(
        self, fill: float
    ) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " columns"], Float[np.ndarray, "rows columns"]]]:
        """All pairs in parts, in order: slots a, slots b, and scores, ``fill`` where a is not before b."""
        groups, alive = self.groups, self.groups.alive
        first = 0
        while first < len(alive) - 1:
            rows = max(1, _BLOCK // (len(alive) - first))
            a, b = alive[first : min(first + rows, len(alive) - 1)], alive[first + 1 :]
            together = groups.together[a[:, None], b]
            size, fires = groups.size, groups.fires
            bases = pair_bases(together, fires[a, None], fires[b], size[a, None], size[b], self._alpha)
            scores = pair_scores(bases, together, self.k)
            scores[b <= a[:, None]] = fill
            yield a, b, scores
            first += rows


def _first(ranked: Ranked, m: int) -> Int[np.ndarray, " _m"]:
    """Places of the first m pairs of some, in order."""
    if m < len(ranked.score):
        places = np.flatnonzero(ranked.score <= np.partition(ranked.score, m - 1)[m - 1])
    else:
        places = np.arange(len(ranked.score))
    some = ranked.take(places)
    return places[np.lexsort((some.b, some.a, some.score))[:m]]


def _raise(
    most: Float[np.ndarray, " slots"],
    fires: Float[np.ndarray, " slots"],
    fewer_bits: float,
    union: int,
    others: Int[np.ndarray, " m"],
    scores: Float[np.ndarray, " m"],
) -> None:
    """Bounds of the largest score of each group after a merge: each common firing costs fewer bits."""
    most += fewer_bits * fires
    most += 1e-12 * np.abs(most)  # more than rounding may have taken away
    most[others] = np.maximum(most[others], scores)
    most[union] = scores.max()
