"""How far two partitions are apart, and how groups of different runs correspond.

Partitions of the same subcomponents are compared by which of them are together, whatever the groups are called:

* the *variation of information* H(A|B) + H(B|A), in bits: a metric; 0 for equal partitions, at most log2 n;
* the *adjusted Rand index*: agreement on pairs, 1 for equal partitions and 0 for what chance gives;
* the *moved fraction*: the smallest part of the subcomponents that would have to change its group, over all ways to
  pair groups with groups (a Hamming distance that does not depend on names).

Different runs have different subcomponents. There groups are compared by where they fire: Jaccard indices over the same
positions, groups paired by an optimal assignment.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vpd.analysis.clustering.memberships import Memberships

Labels = Int[np.ndarray, " n"]
Cells = Int[np.ndarray, " cells"]


def _shared(a: Labels, b: Labels) -> tuple[Cells, Cells, Cells]:
    """Pairs of a group of each partition with a common subcomponent, and how many they share."""
    (i, j), counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    return i, j, counts


def variation_of_information(a: Labels, b: Labels) -> float:
    """H(A|B) + H(B|A) of two partitions, in bits."""
    both = _shared(a, b)[2] / len(a)
    alone = _entropy(np.bincount(a) / len(a)) + _entropy(np.bincount(b) / len(b))
    return max(0.0, 2 * _entropy(both) - alone)


def _entropy(p: Float[np.ndarray, " m"]) -> float:
    p = p[p > 0]
    return float(-np.sum(p * np.log2(p)))


def adjusted_rand(a: Labels, b: Labels) -> float:
    """The Rand index of two partitions, 0 where they agree as by chance and 1 where they are equal."""
    both, in_a, in_b = (_pairs(counts) for counts in (_shared(a, b)[2], np.bincount(a), np.bincount(b)))
    chance = in_a * in_b / max(_pairs(np.array([len(a)])), 1.0)
    most = (in_a + in_b) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def _pairs(counts: Int[np.ndarray, " m"]) -> float:
    return float(np.sum(counts * (counts - 1.0)) / 2)


def moved_fraction(a: Labels, b: Labels) -> float:
    """The smallest part of the subcomponents that must change their group to make two partitions equal."""
    i, j, counts = _shared(a, b)
    groups = int(a.max()) + 1
    n = groups + int(b.max()) + 1
    # Groups that share no subcomponent are never worth pairing, so each connected part is assigned alone.
    found = connected_components(coo_array((counts, (i, j + groups)), shape=(n, n)), directed=False)
    assert found is not None
    of = np.asarray(found[1])[i]
    order = np.argsort(of, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(of[order])) + 1)
    return 1 - sum(_best_pairing(i[part], j[part], counts[part]) for part in parts) / len(a)


def _best_pairing(i: Cells, j: Cells, counts: Cells) -> int:
    """The most subcomponents that groups which are paired can share."""
    if len(counts) == 1:
        return int(counts[0])
    (rows, i), (columns, j) = (np.unique(which, return_inverse=True) for which in (i, j))
    table = np.zeros((len(rows), len(columns)), np.int64)
    table[i, j] = counts
    return int(table[linear_sum_assignment(table, maximize=True)].sum())


def jaccard(a: Memberships, b: Memberships) -> Float[np.ndarray, "n m"]:
    """Positions at which both fire over those at which either does, of every pair."""
    both = (a.matrix().T.tocsr() @ b.matrix()).toarray()
    either = a.counts[:, None] + b.counts - both
    return both / np.maximum(either, 1)


def matched(similarity: Float[np.ndarray, "n m"]) -> Int[np.ndarray, "k 2"]:
    """The pairing of rows with columns that has the largest sum, by falling similarity."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    order = np.argsort(-similarity[rows, columns], kind="stable")
    return np.stack([rows[order], columns[order]], axis=1)
