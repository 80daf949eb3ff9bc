"""Which two groups to merge: three stochastic rules, each of which takes the lowest cost in the limit of 0.

All pairs are in one order, by cost and, where costs tie, by the smallest members of the two groups.

* ``range``: any of the pairs whose cost is at most min + threshold · (max − min), each as likely as another.
* ``mcmc``: a pair in proportion to exp(−cost / temperature), the cost in bits per position.
* ``exp_rank``: the pair of rank ρ = 0, 1, 2, ... in proportion to exp(−ρ / temperature).

Only the lowest pairs are ever listed. Beyond :data:`LISTED` of them, pairs are proposed uniformly among all, and taken
so that the result has exactly the stated probabilities; of N pairs that takes some N / LISTED proposals at most.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

LISTED = 2048
_FIRST_DRAWS, _MOST_DRAWS = 4, 8192

Pair = tuple[int, int]


@dataclass(frozen=True)
class Ranked:
    """Pairs of groups.

    Attributes:
        a: the group with the smaller smallest member, as the state that answered calls it.
        b: the other one.
        score: the part of the cost in which pairs differ, summed over positions.
    """

    a: Int[np.ndarray, " m"]
    b: Int[np.ndarray, " m"]
    score: Float[np.ndarray, " m"]

    def pair(self, i: int) -> Pair:
        """One of them."""
        return int(self.a[i]), int(self.b[i])

    def take(self, places: Int[np.ndarray, " _k"]) -> "Ranked":
        """Some of them."""
        return Ranked(self.a[places], self.b[places], self.score[places])

    def after(self, last: "Ranked") -> Bool[np.ndarray, " m"]:
        """Which come later in the order of all pairs than the last of others."""
        a, b, score = last.a[-1], last.b[-1], last.score[-1]
        later = (self.a > a) | ((self.a == a) & (self.b > b))
        return (self.score > score) | ((self.score == score) & later)


@runtime_checkable
class Pairs(Protocol):
    """What a sampler asks of a partition."""

    @property
    def k(self) -> int:
        """Number of groups."""
        ...

    @property
    def positions(self) -> int:
        """Number of positions."""
        ...

    def lowest(self, m: int) -> Ranked:
        """The first m pairs, in order; all of them where there are fewer."""
        ...

    def highest(self) -> float:
        """The largest score of a pair."""
        ...

    def between(self, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Ranked:
        """Pairs by the ranks i < j of their groups' smallest members among those of all groups."""
        ...


Sampler = Callable[[Pairs, np.random.Generator], Pair]


def lowest_pair(pairs: Pairs, rng: np.random.Generator) -> Pair:
    """The pair of lowest cost; draws nothing."""
    return pairs.lowest(1).pair(0)


def range_sampler(threshold: float, listed: int = LISTED) -> Sampler:
    """Any pair whose cost is within a fraction of the whole range of costs from the lowest one.

    Args:
        threshold: that fraction, from 0 to 1.
        listed: so many candidates are listed; of more, one is found by trial.
    """
    if threshold == 0:
        return lowest_pair

    def choose(pairs: Pairs, rng: np.random.Generator) -> Pair:
        low = pairs.lowest(listed + 1)
        limit = low.score[0] + threshold * (pairs.highest() - low.score[0])
        candidates = int(np.sum(low.score <= limit))
        if candidates <= listed:
            return low.pair(int(rng.integers(candidates)))
        for tried, _ in _proposals(pairs, rng):
            good = np.flatnonzero(tried.score <= limit)
            if len(good):
                return tried.pair(int(good[0]))
        raise AssertionError("proposals do not end")

    return choose


def mcmc_sampler(temperature: float, listed: int = LISTED) -> Sampler:
    """A pair in proportion to exp(−cost / temperature).

    The listed pairs have their exact weight. All others are at most as likely as the last of these: they are proposed
    with that weight and accepted with the ratio of their own to it.

    Args:
        temperature: in bits per position.
        listed: how many are listed.
    """
    if temperature == 0:
        return lowest_pair

    def choose(pairs: Pairs, rng: np.random.Generator) -> Pair:
        low = pairs.lowest(listed)
        scale = temperature * pairs.positions
        ends = np.cumsum(np.exp((low.score[0] - low.score) / scale))
        least = float(np.exp((low.score[0] - low.score[-1]) / scale))
        number = pairs.k * (pairs.k - 1) // 2
        whole = float(ends[-1]) + (number * least if number > len(low.score) else 0.0)
        for tried, u in _proposals(pairs, rng):
            place = u[0] * whole
            ratio = np.exp(np.minimum(low.score[-1] - tried.score, 0) / scale)
            good = np.flatnonzero((place < ends[-1]) | (tried.after(low) & (u[1] < ratio)))
            if len(good) and place[good[0]] < ends[-1]:
                return low.pair(int(np.searchsorted(ends, place[good[0]], side="right")))
            if len(good):
                return tried.pair(int(good[0]))
        raise AssertionError("proposals do not end")

    return choose


def exp_rank_sampler(temperature: float) -> Sampler:
    """A pair whose rank by cost is exponentially distributed.

    Args:
        temperature: in ranks.
    """
    if temperature == 0:
        return lowest_pair

    def choose(pairs: Pairs, rng: np.random.Generator) -> Pair:
        number = pairs.k * (pairs.k - 1) // 2
        # The inverse of the distribution function, cut off at the number of pairs.
        cut = -math.expm1(-number / temperature)
        rank = int(-temperature * math.log1p(-float(rng.random()) * cut))
        return pairs.lowest(min(rank, number - 1) + 1).pair(-1)

    return choose


def _proposals(pairs: Pairs, rng: np.random.Generator):
    """Pairs drawn uniformly among all, with two uniform numbers each, in parts that grow."""
    draws = _FIRST_DRAWS
    while True:
        i, j = rng.integers(pairs.k, size=draws), rng.integers(pairs.k - 1, size=draws)
        j = j + (j >= i)
        yield pairs.between(np.minimum(i, j), np.maximum(i, j)), rng.random((2, draws))
        draws = min(4 * draws, _MOST_DRAWS)


SAMPLERS: Mapping[str, Callable[[float], Sampler]] = {
    "range": range_sampler,
    "mcmc": mcmc_sampler,
    "exp_rank": exp_rank_sampler,
}
