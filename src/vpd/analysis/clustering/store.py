"""``<run>/clusters/<name>/``: the clusterings of a run as tables, histories and facts, and how they are read again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from vpd.analysis.artefacts import Artefact, open_artefact
from vpd.analysis.clustering.history import History
from vpd.analysis.names import FlatAxis, Subcomponent, refuse_other_sites
from vpd.errors import RunError

KIND, SCHEMA_VERSION = "clusters", 1
Densities = Float[np.ndarray, " n"]
HISTORIES, MEMBERS, CLUSTERS = "histories.npz", "members.parquet", "clusters.parquet"


@dataclass(frozen=True)
class Clustering:
    """One history at its cut.

    Attributes:
        alpha: bits for each member of a group that is active.
        seed: of the merges.
        history: all merges.
        labels: cluster of each subcomponent.
        density: fraction of the positions at which each cluster fires.
        cohesion: which fraction of its members fires there, on average: 1 where all always do.
        stability: how well each cluster is found again under the other seeds; 1 where there is one seed.
        representative: whether it is the one nearest to those of all seeds.
    """

    alpha: float
    seed: int
    history: History
    labels: Int[np.ndarray, " n"]
    density: Float[np.ndarray, " clusters"]
    cohesion: Float[np.ndarray, " clusters"]
    stability: Float[np.ndarray, " clusters"]
    representative: bool

    @property
    def sizes(self) -> Int[np.ndarray, " clusters"]:
        """Members of each cluster."""
        return np.bincount(self.labels)


def write_clusterings(
    folder: Path, found: Sequence[Clustering], axis: FlatAxis, kept: Int[np.ndarray, " n"], density: Densities
) -> None:
    """The tables and histories of an artefact.

    Args:
        folder: where.
        found: the clusterings.
        axis: all subcomponents of the run.
        kept: places of those that take part.
        density: fraction of the positions at which each of these fires.
    """
    np.savez_compressed(
        folder / HISTORIES,
        places=kept,
        alpha=np.array([one.alpha for one in found]),
        seed=np.array([one.seed for one in found]),
        representative=np.array([one.representative for one in found]),
        initial=np.array([one.history.initial for one in found]),
        pairs=np.stack([one.history.pairs for one in found]).astype(np.int32),
        costs=np.stack([one.history.costs for one in found]),
    )
    names = [axis.at(int(place)) for place in kept]
    pq.write_table(pa.concat_tables([_members(one, names, density) for one in found]), folder / MEMBERS)
    pq.write_table(pa.concat_tables([_clusters(one, names) for one in found]), folder / CLUSTERS)


def _members(one: Clustering, names: Sequence[Subcomponent], density: Densities) -> pa.Table:
    order = np.argsort(one.labels, kind="stable")
    return pa.table(
        {
            "alpha": np.full(len(order), one.alpha),
            "seed": np.full(len(order), one.seed),
            "cluster": one.labels[order],
            "site": [names[i].site for i in order],
            "index": [names[i].index for i in order],
            "density": density[order],
        }
    )


def _clusters(one: Clustering, names: Sequence[Subcomponent]) -> pa.Table:
    sites = [set[str]() for _ in one.sizes]
    for label, name in zip(one.labels, names, strict=True):
        sites[label].add(name.site)
    n = len(one.sizes)
    return pa.table(
        {
            "alpha": np.full(n, one.alpha),
            "seed": np.full(n, one.seed),
            "cluster": np.arange(n),
            "size": one.sizes,
            "sites": [len(found) for found in sites],
            "density": one.density,
            "cohesion": one.cohesion,
            "stability": one.stability,
        }
    )


@dataclass(frozen=True)
class Clusters:
    """A clustering that was read again.

    Attributes:
        artefact: the folder, what it was made from, and the settings.
        alpha: bits for each member of a group that is active.
        seed: of the merges.
        subcomponents: those that took part.
        history: all merges; its numbers are places in ``subcomponents``.
        labels: cluster of each of them, from 0 by falling size.
    """

    artefact: Artefact
    alpha: float
    seed: int
    subcomponents: tuple[Subcomponent, ...]
    history: History
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1

    @cached_property
    def _by_name(self) -> dict[Subcomponent, int]:
        return dict(zip(self.subcomponents, self.labels.tolist(), strict=True))

    def cluster_of(self, site: str, index: int) -> int | None:
        """The cluster of a subcomponent; None for one that was left out, as it fires too rarely or too often.

        Raises:
            RunError: a site that is not decomposed, or an index beyond its C.
        """
        sizes = self.artefact.origin.sizes
        refuse_other_sites([site], sizes)
        if not 0 <= index < sizes[site]:
            raise RunError(f"{site} has the subcomponents 0 to {sizes[site] - 1}, and no {index}")
        return self._by_name.get(Subcomponent(site, index))

    def members(self, cluster: int) -> tuple[Subcomponent, ...]:
        """The subcomponents of a cluster.

        Raises:
            RunError: no such cluster.
        """
        if not 0 <= cluster < len(self):
            raise RunError(f"there is no cluster {cluster}; they are numbered 0 to {len(self) - 1}")
        return tuple(self.subcomponents[i] for i in np.flatnonzero(self.labels == cluster))

    def at(self, clusters: int) -> "Clusters":
        """The same history cut at another number of clusters.

        Raises:
            RunError: fewer than one, or more than there are subcomponents.
        """
        n = len(self.subcomponents)
        if not 1 <= clusters <= n:
            raise RunError(f"{n} subcomponents make 1 to {n} clusters, not {clusters}")
        labels = self.history.labels(n - clusters)
        return Clusters(self.artefact, self.alpha, self.seed, self.subcomponents, self.history, labels)


def load_clusters(
    run: str | Path, name: str | None = None, *, alpha: float | None = None, seed: int | None = None
) -> Clusters:
    """Read a clustering that ``vpd cluster`` made.

    Args:
        run: the run directory.
        name: of the clusters; None takes the only ones there are.
        alpha: which of several; the first by default.
        seed: which of several; by default the one nearest to all others.

    Raises:
        RunError: no such clusters, files that can't be read, or clusters of another schema.
    """
    artefact = open_artefact(Path(run), KIND, SCHEMA_VERSION, name)
    try:
        with np.load(artefact.path / HISTORIES, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        axis, places = FlatAxis(artefact.origin.sizes), stored["places"].tolist()
        names = tuple(axis.at(place) for place in places)
        one = _chosen(artefact.path, stored, alpha, seed)
        history = History(stored["pairs"][one].astype(np.int64), stored["costs"][one], float(stored["initial"][one]))
        assert history.n == len(names)
        found = float(stored["alpha"][one]), int(stored["seed"][one])
    except (OSError, KeyError, ValueError, IndexError, BadZipFile, AssertionError) as error:
        raise RunError(f"{artefact.path} can't be read ({type(error).__name__}); make these clusters again") from None
    return Clusters(artefact, *found, names, history, history.labels())


def _chosen(path: Path, stored: Mapping[str, np.ndarray], alpha: float | None, seed: int | None) -> int:
    alphas, seeds = stored["alpha"], stored["seed"]
    same_alpha = alphas == (alphas[0] if alpha is None else alpha)
    chosen = same_alpha & (stored["representative"] if seed is None else seeds == seed)
    if not chosen.any():
        there = ", ".join(f"alpha {a:g} seed {s}" for a, s in zip(alphas.tolist(), seeds.tolist(), strict=True))
        raise RunError(f"{path} has no clustering of that alpha and seed; there are {there}")
    return int(np.argmax(chosen))
