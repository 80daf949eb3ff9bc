"""Clusters of two runs of one target side by side: groups that fire at the same positions (method.md §11)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vpd.analysis.clustering.collect import Sampling, collect
from vpd.analysis.clustering.distance import jaccard, matched
from vpd.analysis.clustering.memberships import Memberships
from vpd.analysis.clustering.store import Clusters
from vpd.analysis.comparison import target_hash
from vpd.analysis.run import Run
from vpd.errors import RunError


@dataclass(frozen=True)
class Correspondence:
    """Which cluster of one run is which of another.

    Attributes:
        pairs: cluster of the first run and cluster of the second, by falling similarity.
        similarity: Jaccard index of where they fire.
        here: fraction of the positions at which each cluster of the first run fires.
        there: of the second.
        positions: that were looked at.
    """

    pairs: Int[np.ndarray, "k 2"]
    similarity: Float[np.ndarray, " k"]
    here: Float[np.ndarray, " n"]
    there: Float[np.ndarray, " m"]
    positions: int

    @property
    def agreement(self) -> float:
        """Mean similarity over the clusters of both runs, each as often as it fires; one without a partner counts 0."""
        weight = self.here[self.pairs[:, 0]] + self.there[self.pairs[:, 1]]
        return float(np.sum(self.similarity * weight) / (self.here.sum() + self.there.sum()))


def correspond(
    run: Run,
    clusters: Clusters,
    other: Run,
    others: Clusters,
    sampling: Sampling,
    watch: Callable[[int], None] = lambda positions: None,
) -> Correspondence:
    """Pair the clusters of two runs by where they fire, at the same positions of the first run's data.

    Raises:
        RunError: runs of different targets, or clusters of another checkpoint than the one that is open.
    """
    if target_hash(run) != target_hash(other):
        raise RunError(f"{run.path} and {other.path} decompose different targets; give runs of one target")
    for opened, read in ((run, clusters), (other, others)):
        if opened.step != read.artefact.origin.step:
            raise RunError(
                f"{read.artefact.path} is of step {read.artefact.origin.step}, and step {opened.step} is open"
            )
    firings = collect([run, other], sampling, watch)
    here, there = (_of_clusters(*one) for one in zip((run, other), (clusters, others), firings, strict=True))
    similarity = jaccard(here, there)
    pairs = matched(similarity)
    densities = here.counts / here.positions, there.counts / there.positions
    return Correspondence(pairs, similarity[pairs[:, 0], pairs[:, 1]], *densities, here.positions)


def _of_clusters(run: Run, clusters: Clusters, firings: Memberships) -> Memberships:
    places = np.array([run.axis.place(one) for one in clusters.subcomponents])
    return firings.only(places).grouped(clusters.labels)
