"""What other analyses of the run say of a subcomponent, where they were made: attributions and clusters."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpd.analysis.artefacts import artefact_names
from vpd.analysis.attribution import Attributions, load_attributions
from vpd.analysis.clustering.store import Clusters, load_clusters
from vpd.analysis.harvest.reading import Harvest
from vpd.analysis.look.words import visible
from vpd.analysis.names import FlatAxis, Subcomponent
from vpd.errors import RunError
from vpd.progress import say

# Members of a cluster that are named.
MOST = 12

Ranked = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Related:
    """Of one subcomponent.

    Attributes:
        sources: what feeds it most, with signed attributions.
        targets: what it feeds most.
        cluster: number of its cluster; None where it is in none.
        members: the others of that cluster, at most so many as were asked for.
        more: how many others there are beside these.
    """

    sources: Ranked = ()
    targets: Ranked = ()
    cluster: int | None = None
    members: tuple[Subcomponent, ...] = ()
    more: int = 0


@dataclass(frozen=True)
class Others:
    """The other analyses of a run; each None where it was not made.

    Attributes:
        attributions: over data.
        clusters: of subcomponents.
        axis: sizes of the decomposed matrices; what else attributions name are ends of the network.
        vocabulary: texts of tokens, for those ends.
    """

    attributions: Attributions | None = None
    clusters: Clusters | None = None
    axis: FlatAxis = field(default_factory=lambda: FlatAxis({}))
    vocabulary: Sequence[str] = ()

    def of(self, one: Subcomponent, k: int = 8) -> Related:
        """What they say of a subcomponent."""
        sources, targets, cluster, members = (), (), None, ()
        if self.attributions is not None:
            if one.site in self.attributions.targets.sizes:
                sources = self._named(self.attributions.top_sources(one, k))
            if one.site in self.attributions.sources.sizes:
                targets = self._named(self.attributions.top_targets(one, k))
        if self.clusters is not None:
            cluster = self.clusters.cluster_of(one.site, one.index)
            if cluster is not None:
                members = tuple(other for other in self.clusters.members(cluster) if other != one)
        return Related(sources, targets, cluster, members[:MOST], max(0, len(members) - MOST))

    def _named(self, ranked: Sequence[tuple[str, float]]) -> Ranked:
        """With the text of tokens, where an end of the network is one."""
        return tuple((self._name(name), value) for name, value in ranked)

    def _name(self, name: str) -> str:
        site, _, index = name.rpartition(":")
        if site in self.axis.sizes or int(index) >= len(self.vocabulary):
            return name
        return f"{name} {visible(self.vocabulary[int(index)])}"


def load_others(run: Path, harvest: Harvest) -> Others:
    """The only attributions and clusters of a run; where there are several a notice: none is better than another."""
    attributions, clusters = None, None
    if artefact_names(run, "attributions"):
        try:
            attributions = load_attributions(run)
        except RunError as error:
            say(f"{error}, so no attributions are shown")
    if artefact_names(run, "clusters"):
        try:
            clusters = load_clusters(run)
        except RunError as error:
            say(f"{error}, so no clusters are shown")
    if clusters is not None and clusters.artefact.origin != harvest.artefact.origin:
        say(f"{clusters.artefact.path} is of another checkpoint than {harvest.path}, so no clusters are shown")
        clusters = None
    return Others(attributions, clusters, harvest.axis, harvest.vocabulary)
