"""From a run to its clusterings: firings, coactivation once, and a history for every α and seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil
from jaxtyping import Float, Int

from vpd.analysis.clustering.collect import Sampling, Selection, collect, select
from vpd.analysis.clustering.ensemble import Agreement, agreement, stability
from vpd.analysis.clustering.memberships import Memberships
from vpd.analysis.clustering.merging import merge_all
from vpd.analysis.clustering.samplers import SAMPLERS
from vpd.analysis.clustering.store import Clustering
from vpd.analysis.run import Run
from vpd.errors import RunError
from vpd.progress import Meter, bar_unless, training_meter


@dataclass(frozen=True)
class Merging:
    """How many histories there are, and how they choose pairs.

    Attributes:
        alphas: bits for each member of a group that is active; a history each.
        sampler: ``range``, ``mcmc`` or ``exp_rank``.
        temperature: of the sampler; 0 always takes the pair of lowest cost.
        seeds: histories for each α, with seeds 0, 1, ...
    """

    alphas: tuple[float, ...] = (1.0,)
    sampler: str = "range"
    temperature: float = 0.0
    seeds: int = 1

    def __post_init__(self) -> None:
        """Refuse what can't be done.

        Raises:
            RunError: a value that can't be used.
        """
        if self.sampler not in SAMPLERS:
            raise RunError(f"there is no sampler {self.sampler!r}; they are {', '.join(SAMPLERS)}")
        for alpha in self.alphas:
            if not 0 <= alpha < math.inf:
                raise RunError(f"alpha is bits for each member of an active group, so 0 or more, not {alpha:g}")
        if len(set(self.alphas)) < len(self.alphas):
            raise RunError(f"alpha {' '.join(f'{alpha:g}' for alpha in self.alphas)}: give each one once")
        if not 0 <= self.temperature < math.inf:
            raise RunError(f"the temperature of a sampler is 0 or more, not {self.temperature:g}")
        if self.sampler == "range" and self.temperature > 1:
            raise RunError(
                f"the range sampler's temperature is a fraction of the range of costs, not {self.temperature:g}"
            )
        if self.seeds < 1:
            raise RunError(f"a number of seeds is at least 1, not {self.seeds}")
        if self.seeds > 1 and self.temperature == 0:
            raise RunError("at temperature 0 all seeds make the same clusters; give --temperature with --seeds")


@dataclass(frozen=True)
class Found:
    """What was found in a run.

    Attributes:
        sampling: which positions.
        merging: which histories.
        selection: which subcomponents take part.
        firings: of these.
        clusterings: seeds of the first α, of the second, ...
        agreements: of the seeds of each α.
    """

    sampling: Sampling
    merging: Merging
    selection: Selection
    firings: Memberships
    clusterings: tuple[Clustering, ...]
    agreements: Mapping[float, Agreement]

    @property
    def density(self) -> Float[np.ndarray, " n"]:
        """Fraction of the positions at which each subcomponent fires."""
        return self.firings.counts / self.firings.positions

    def of(self, alpha: float) -> tuple[Clustering, ...]:
        """The clusterings of one α."""
        return tuple(one for one in self.clusterings if one.alpha == alpha)

    def representative(self, alpha: float) -> Clustering:
        """Of one α, the clustering that is nearest to those of all seeds."""
        return next(one for one in self.of(alpha) if one.representative)


def observed(run: Run, sampling: Sampling, quiet: bool = False) -> tuple[Selection, Memberships]:
    """Which subcomponents take part in a clustering of a run, and where they fire.

    Raises:
        RunError: too few that do.
    """
    with training_meter(sampling.positions, 0, bar_unless(quiet), "collecting firings", "position") as meter:
        firings = collect([run], sampling, lambda seen: meter(seen, {}))[0]
    selection = select(firings, sampling)
    return selection, firings.only(selection.kept)


def cluster(
    selection: Selection, firings: Memberships, sampling: Sampling, merging: Merging, quiet: bool = False
) -> Found:
    """Cluster the subcomponents that take part.

    Raises:
        RunError: more of them than the memory of this machine has room for.
    """
    _refuse_too_many(firings.n)
    together = firings.coactivation()
    agreements: dict[float, Agreement] = {}
    every: list[Clustering] = []
    merges = firings.n - 1
    total = merges * merging.seeds * len(merging.alphas)
    with training_meter(total, 0, bar_unless(quiet), "merging", "merge") as meter:
        for alpha in merging.alphas:
            ones: list[Clustering] = []
            for seed in range(merging.seeds):
                before = (len(every) + seed) * merges
                watch = partial(_tell, meter, before)
                ones.append(_one(firings, together, merging, alpha, seed, watch))
            agreements[alpha] = agreement([one.labels for one in ones])
            every += _compared(ones, agreements[alpha].medoid)
    return Found(sampling, merging, selection, firings, tuple(every), agreements)


def _tell(meter: Meter, before: int, merges: int) -> None:
    meter(before + merges, {})


def _one(
    firings: Memberships,
    together: Int[np.ndarray, "n n"],
    merging: Merging,
    alpha: float,
    seed: int,
    watch: Callable[[int], None],
) -> Clustering:
    sampler = SAMPLERS[merging.sampler](merging.temperature)
    history = merge_all(firings, alpha, sampler, seed, together, watch)
    labels = history.labels()
    fires = firings.grouped(labels).counts
    cohesion = np.bincount(labels, weights=firings.counts) / (np.bincount(labels) * fires)
    return Clustering(alpha, seed, history, labels, fires / firings.positions, cohesion, np.ones(len(fires)), True)


def _compared(ones: Sequence[Clustering], medoid: int) -> list[Clustering]:
    """The clusterings of several seeds with how well each cluster is found again under the others."""
    labels = [one.labels for one in ones]
    return [
        replace(one, stability=stability(one.labels, labels[:i] + labels[i + 1 :]), representative=i == medoid)
        for i, one in enumerate(ones)
    ]


def _refuse_too_many(n: int) -> None:
    """The counts of all pairs, once as they are and once on their way to one group, with room to work."""
    needed, free = 3 * 4 * n**2, psutil.virtual_memory().available
    if needed > free:
        raise RunError(
            f"counts of all pairs of {n} subcomponents take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
            "are free; leave out rare ones with --min-firings"
        )
