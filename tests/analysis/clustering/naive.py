"""The merge as it is defined: every cost of every pair anew from the firings, at every merge."""

from dataclasses import dataclass

import numpy as np

from vpd.analysis.clustering.samplers import Ranked


def length(groups: list[np.ndarray], sizes: list[int], alpha: float) -> float:
    """Description length of groups of firings ``[positions]``."""
    return sum(g.mean() * (np.log2(len(groups)) + alpha * r) for g, r in zip(groups, sizes, strict=True))


@dataclass
class NaivePairs:
    """All pairs of groups ``[k, positions]`` with all scores, from nothing but the firings."""

    active: np.ndarray
    sizes: np.ndarray
    alpha: float

    def __post_init__(self) -> None:
        k = self.k
        a, b = np.triu_indices(k, 1)
        together = (self.active[a] & self.active[b]).sum(axis=1)
        fires = self.active.sum(axis=1)
        only_a, only_b = fires[a] - together, fires[b] - together
        member_bits = self.alpha * (only_a * self.sizes[b] + only_b * self.sizes[a])
        self.all = Ranked(a, b, member_bits - np.log2(k - 1) * together)
        self.order = np.lexsort((b, a, self.all.score))

    @property
    def k(self) -> int:
        return len(self.active)

    @property
    def positions(self) -> int:
        return self.active.shape[1]

    def lowest(self, m: int) -> Ranked:
        return self.all.take(self.order[:m])

    def highest(self) -> float:
        return float(self.all.score.max())

    def between(self, i: np.ndarray, j: np.ndarray) -> Ranked:
        place = {(int(a), int(b)): p for p, (a, b) in enumerate(zip(self.all.a, self.all.b, strict=True))}
        return self.all.take(np.array([place[int(a), int(b)] for a, b in zip(i, j, strict=True)]))


def naive_history(fires: np.ndarray, alpha: float, sampler, seed: int) -> tuple[list[tuple[int, int]], list[float]]:
    """Merged groups by smallest member, and the description length before each merge and after the last.

    Args:
        fires: ``[positions, n]``.
        alpha: bits for each member.
        sampler: chooses the pair.
        seed: of what it draws.
    """
    rng = np.random.default_rng(seed)
    groups, members = list(fires.T), [[c] for c in range(fires.shape[1])]
    pairs, lengths = [], [length(groups, [1] * len(groups), alpha)]
    while len(groups) > 1:
        i, j = sampler(NaivePairs(np.array(groups), np.array([len(m) for m in members]), alpha), rng)
        pairs.append((min(members[i]), min(members[j])))
        groups[i], members[i] = groups[i] | groups[j], members[i] + members[j]
        del groups[j], members[j]
        lengths.append(length(groups, [len(m) for m in members], alpha))
    return pairs, lengths
