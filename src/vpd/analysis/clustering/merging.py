"""From every subcomponent alone to one group."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from vpd.analysis.clustering.cost import common_change, description_length, pair_bases, pair_scores
from vpd.analysis.clustering.frontier import Frontier
from vpd.analysis.clustering.groups import Groups
from vpd.analysis.clustering.history import History
from vpd.analysis.clustering.memberships import Memberships
from vpd.analysis.clustering.samplers import Sampler, lowest_pair


def merge_all(
    memberships: Memberships,
    alpha: float,
    sampler: Sampler = lowest_pair,
    seed: int = 0,
    together: Int[np.ndarray, "n n"] | None = None,
    watch: Callable[[int], None] = lambda merges: None,
) -> History:
    """Merge pair after pair until one group is left (method.md §11).

    Args:
        memberships: which subcomponents fire where; every one fires somewhere.
        alpha: bits for each member of a group that is active.
        sampler: chooses the pair; without one it is that of lowest cost.
        seed: of what the sampler draws.
        together: their coactivation, where it is counted already.
        watch: called with the number of merges made.
    """
    groups = Groups(memberships, memberships.coactivation() if together is None else together)
    frontier, rng = Frontier(groups, alpha), np.random.default_rng(seed)
    n = groups.k
    initial = description_length(groups.fires, groups.size, groups.positions, alpha)
    pairs, costs = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    for t in range(n - 1):
        a, b = sampler(frontier, rng)
        pairs[t] = groups.first[a], groups.first[b]
        costs[t] = merge_cost(groups, a, b, alpha)
        frontier.merge(a, b)
        watch(t + 1)
    return History(pairs, costs, initial)


def merge_cost(groups: Groups, a: int, b: int, alpha: float) -> float:
    """The change of description length if the groups of two slots are merged, in bits per position."""
    fires, size, together = groups.fires, groups.size, groups.together[[a], [b]]
    score = pair_scores(pair_bases(together, fires[[a]], fires[[b]], size[[a]], size[[b]], alpha), together, groups.k)
    return float(score[0] + common_change(groups.total, groups.k)) / groups.positions
