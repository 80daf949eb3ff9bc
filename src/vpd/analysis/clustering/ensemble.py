"""Several stochastic clusterings of one run: what they agree on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vpd.analysis.clustering.distance import adjusted_rand, moved_fraction, variation_of_information

Labels = Int[np.ndarray, " n"]
Matrix = Float[np.ndarray, "seeds seeds"]


@dataclass(frozen=True)
class Agreement:
    """How far clusterings of one run are apart.

    Attributes:
        information: variation of information of every pair, in bits.
        rand: adjusted Rand index.
        moved: moved fraction.
    """

    information: Matrix
    rand: Matrix
    moved: Matrix

    @property
    def medoid(self) -> int:
        """The clustering with the smallest mean variation of information to the others."""
        return int(np.argmin(self.information.sum(axis=1)))


def agreement(partitions: Sequence[Labels]) -> Agreement:
    """Distances of every pair of partitions of the same subcomponents."""
    measures = (variation_of_information, adjusted_rand, moved_fraction)
    return Agreement(*(_every_pair(partitions, measure) for measure in measures))


def _every_pair(partitions: Sequence[Labels], measure: Callable[[Labels, Labels], float]) -> Matrix:
    n = len(partitions)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            found[i, j] = found[j, i] = measure(partitions[i], partitions[j])
    return found


def co_membership(partitions: Sequence[Labels], some: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
    """In which fraction of the clusterings two subcomponents are in one cluster, for some of them."""
    chosen = np.stack([labels[some] for labels in partitions])
    return np.mean(chosen[:, :, None] == chosen[:, None, :], axis=0)


def stability(labels: Labels, others: Sequence[Labels]) -> Float[np.ndarray, " clusters"]:
    """How well each cluster is found again: the best Jaccard index of its members in another clustering, on average.

    Args:
        labels: the clusters.
        others: other clusterings of the same subcomponents; none makes it 1.
    """
    sizes = np.bincount(labels)
    total = np.zeros(len(sizes))
    for other in others:
        pairs, both = np.unique(np.stack([labels, other]), axis=1, return_counts=True)
        either = sizes[pairs[0]] + np.bincount(other)[pairs[1]] - both
        best = np.zeros(len(sizes))
        np.maximum.at(best, pairs[0], both / either)
        total += best
    return total / len(others) if others else np.ones(len(sizes))
