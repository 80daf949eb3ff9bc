"""Several runs of one target side by side: do they agree, what did they reach, at which price."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vpd.analysis.live import LiveSet, live_set
from vpd.analysis.run import Run, open_run
from vpd.analysis.run_labels import refuse_repeated, short_labels
from vpd.errors import RunError
from vpd.evaluation.agreement import MEASURES, Agreement, Measure, Pieces, agreements
from vpd.targets import frozen_weights
from vpd.targets.fingerprint import weights_fingerprint

Pair = tuple[int, int]
Matrix = Float[np.ndarray, "runs runs"]


@dataclass(frozen=True)
class SiteAgreement:
    """How the runs agree at one site.

    Attributes:
        shape: of the matrix, ``(d_in, d_out)``.
        live: number of live subcomponents of each run, None for a run that doesn't decompose the site.
        pairs: the matchings of each pair of runs that decompose it.
    """

    shape: tuple[int, int]
    live: tuple[int | None, ...]
    pairs: Mapping[Pair, Mapping[Measure, Agreement]]

    def matrix(self, measure: Measure, covering: bool = True) -> Matrix:
        """Agreement of every run with every other; NaN on the diagonal and where there is none."""
        matrix = np.full((len(self.live), len(self.live)), np.nan)
        for (i, j), found in self.pairs.items():
            matrix[i, j] = matrix[j, i] = found[measure].covering if covering else found[measure].matched
        return matrix


@dataclass(frozen=True)
class Comparison:
    """Runs of one target, what made subcomponents live, and how they agree.

    Attributes:
        runs: opened, in the order given.
        labels: short distinct names.
        criterion: what made a subcomponent live.
        sites: agreement at every site that at least two runs decompose.
        alone: sites that only one run decomposes, which are left out.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    criterion: str
    sites: Mapping[str, SiteAgreement]
    alone: tuple[str, ...]

    def overall(self) -> Matrix:
        """Mean over sites of the covering rank-one agreement of each pair."""
        every = np.stack([site.matrix("rank_one") for site in self.sites.values()])
        known = np.sum(~np.isnan(every), axis=0)
        return np.where(known > 0, np.nansum(every, axis=0) / np.maximum(known, 1), np.nan)

    def with_others(self) -> list[float]:
        """Median of the overall agreement of each run with the others; NaN where it has nothing to agree on.

        The median, because one run that differs would pull down the mean of all.
        """
        return [float(np.nanmedian(row)) if np.any(~np.isnan(row)) else float("nan") for row in self.overall()]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Open runs of one target and match their live subcomponents, pair by pair and site by site.

    Raises:
        RunError: fewer than two runs, one given twice, different targets, or no site in common.
    """
    refuse_repeated(paths)
    runs = tuple(open_run(path) for path in paths)
    for other in runs[1:]:
        _refuse_another_target(runs[0], other)
    sets = [live_set(run) for run in runs]
    sites, alone = _shared_sites(runs)
    found = {site: _agree(site, runs, sets) for site in sites}
    criteria = dict.fromkeys(live.criterion for live in sets)
    return Comparison(runs, short_labels([run.path.resolve() for run in runs]), "; ".join(criteria), found, alone)


def target_hash(run: Run) -> str:
    """A hash of all weights of the frozen network."""
    return weights_fingerprint(run.experiment.target)


def _refuse_another_target(run: Run, other: Run) -> None:
    if target_hash(run) == target_hash(other):
        return
    a, b = _weights(run), _weights(other)
    differ = [s for s in dict.fromkeys([*a, *b]) if s not in a or s not in b or not np.array_equal(a[s], b[s])]
    where = ", ".join(differ) if differ else "no matrix, but in other weights such as biases"
    raise RunError(
        f"{run.path} and {other.path} decompose different targets, and what was found in them can't be compared: "
        f"the weights differ at {where}; give runs of one target"
    )


def _weights(run: Run) -> dict[str, np.ndarray]:
    batch = run.experiment.train_batch(jnp.asarray(0, jnp.uint32), jnp.asarray(0, jnp.int32))
    return {site: np.asarray(weight) for site, weight in frozen_weights(run.experiment.target, batch).items()}


def _shapes(run: Run) -> dict[str, tuple[int, int]]:
    pieces = {site: run.components(site) for site in run.sites}
    return {site: (p.V.shape[0], p.U.shape[1]) for site, p in pieces.items()}


def _shared_sites(runs: Sequence[Run]) -> tuple[list[str], tuple[str, ...]]:
    """The sites that at least two runs decompose, and those of one run alone; one target, so one shape a name."""
    every = [_shapes(run) for run in runs]
    names = list(dict.fromkeys(site for shapes in every for site in shapes))
    shared = [site for site in names if sum(site in shapes for shapes in every) > 1]
    if not shared:
        raise RunError(f"the runs have no decomposed site in common, they have {', '.join(names)}; give others")
    return shared, tuple(site for site in names if site not in shared)


def _agree(site: str, runs: Sequence[Run], sets: Sequence[LiveSet]) -> SiteAgreement:
    pieces = [_pieces(run, live, site) for run, live in zip(runs, sets, strict=True)]
    pairs: dict[Pair, Mapping[Measure, Agreement]] = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(pieces), 2):
        if a is not None and b is not None:
            pairs[i, j] = agreements(a, b)
    some = next(piece for piece in pieces if piece is not None)
    shape = (some.V.shape[0], some.U.shape[1])
    return SiteAgreement(shape, tuple(None if p is None else p.n for p in pieces), pairs)


def _pieces(run: Run, found: LiveSet, site: str) -> Pieces | None:
    if site not in run.sites:
        return None
    components, live = run.components(site), found.live[site]
    return Pieces(np.asarray(components.V, np.float32)[:, live], np.asarray(components.U, np.float32)[live])


def agreement_summary(comparison: Comparison) -> dict[str, object]:
    """Matrices, minimum and mean over pairs of every site and measure, as plain values."""
    sites: dict[str, object] = {}
    for name, site in comparison.sites.items():
        measures: dict[str, object] = {}
        for measure in MEASURES:
            kinds = {"covering": site.matrix(measure), "matched": site.matrix(measure, covering=False)}
            measures[measure] = {kind: pair_summary(matrix) for kind, matrix in kinds.items()}
        sites[name] = {"shape": list(site.shape), "live": list(site.live), "agreement": measures}
    return sites


def pair_summary(matrix: Matrix) -> dict[str, object]:
    """Minimum and mean over the pairs of runs, and the whole matrix."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    known = pairs[~np.isnan(pairs)]
    return {
        "minimum": float(known.min()) if known.size else None,
        "mean": float(known.mean()) if known.size else None,
        "pairs": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
    }
