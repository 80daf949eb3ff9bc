"""What a partition costs, and what a merge of two of its groups changes (method.md §11).

A partition in k groups of K subcomponents costs, per position and in bits,

    D = Σ_i s_i (log2 k + α r_i)

where s_i is the fraction of positions at which any member of group i fires and r_i the number of its members: to say
what is active at a position takes the name of each active group, log2 k bits, and α for each of its members.

Merging i and j leaves k − 1 groups. With c the fraction at which both fire, the union fires in s_i + s_j − c, and what
is common to all pairs comes apart from what tells them apart:

    ΔD_ij = S (log2(k − 1) − log2 k)  +  α [(s_i − c) r_j + (s_j − c) r_i] − c log2(k − 1),      S = Σ_i s_i

The second part, times the number of positions, is a pair's *score*. Its ingredients are whole numbers, so that whoever
computes a score gets the same one, to the bit, and pairs that tie do tie. A given pair's score never falls as k falls.
"""

from math import log2

import numpy as np
from jaxtyping import Float, Int, Num

Counts = Num[np.ndarray, "*#shape"]


def pair_bases(
    together: Counts, fires_a: Counts, fires_b: Counts, size_a: Counts, size_b: Counts, alpha: float
) -> Float[np.ndarray, "*shape"]:
    """The part of a pair's score that does not depend on the number of groups.

    Args:
        together: positions at which both groups fire.
        fires_a: positions at which the first fires; float64, so that the products of counts are exact.
        fires_b: of the second.
        size_a: members of the first; float64.
        size_b: of the second.
        alpha: bits for each member.
    """
    return alpha * ((fires_a - together) * size_b + (fires_b - together) * size_a)


def pair_scores(bases: Counts, together: Counts, groups: int) -> Float[np.ndarray, "*shape"]:
    """The part of the change of cost in which pairs differ, summed over positions.

    Args:
        bases: from :func:`pair_bases`.
        together: positions at which both groups fire.
        groups: how many there are before the merge.
    """
    return bases - log2(groups - 1) * together


def common_change(total: float, groups: int) -> float:
    """The part of the change of cost that all pairs share; ``total`` is the number of firings of all groups."""
    return total * (log2(groups - 1) - log2(groups))


def merge_costs(
    together: Int[np.ndarray, "k k"], sizes: Int[np.ndarray, " k"], positions: int, alpha: float
) -> Float[np.ndarray, "k k"]:
    """The change of cost of every pair, in bits per position; the diagonal means nothing.

    For looking: a merge never needs them all.

    Args:
        together: positions at which both groups fire, and on the diagonal each one alone.
        sizes: members.
        positions: looked at.
        alpha: bits for each member.
    """
    k, fires = len(sizes), np.diagonal(together).astype(np.float64)
    size = sizes.astype(np.float64)
    bases = pair_bases(together, fires[:, None], fires, size[:, None], size, alpha)
    scores = pair_scores(bases, together, k)
    return (scores + common_change(float(fires.sum()), k)) / positions


def description_length(
    fires: Num[np.ndarray, " k"], sizes: Num[np.ndarray, " k"], positions: int, alpha: float
) -> float:
    """What a partition costs, in bits per position.

    Args:
        fires: positions at which any member of each group fires.
        sizes: members.
        positions: looked at.
        alpha: bits for each member.
    """
    return float(np.sum(fires * (log2(len(sizes)) + alpha * sizes)) / positions)
