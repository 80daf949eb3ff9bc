"""Attributions summed over data: every alive target, from everything upstream of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpd.analysis.attribution.effects import INPUT, OUTPUT, Effects, Facts, Wanted
from vpd.analysis.attribution.store import Attributions
from vpd.analysis.attribution.sums import Asked, Sums
from vpd.analysis.names import FlatAxis
from vpd.analysis.parts import Parts
from vpd.analysis.run import Run
from vpd.errors import RunError, Stopped
from vpd.evaluation.suite import ALIVE_MEAN_CI
from vpd.progress import Watch, unwatched
from vpd.signals import StopSignals

# Targets of one backward program, and of every source and target so many attributions are kept.
CHUNK, KEPT = 16, 100


@dataclass
class Totals:
    """Sums over data that say what is a source or a target, and how attributions are normalised.

    Attributes:
        mass: summed CI, or number of occurrences of an end, ``{site: [C]}``.
        squares: summed squares of activations, ``{site: [C]}``.
        seen: over how many positions those of a site are summed, ``{site: [C]}``.
        positions: of the data.
    """

    mass: dict[str, Float[np.ndarray, " C"]] = field(default_factory=dict)
    squares: dict[str, Float[np.ndarray, " C"]] = field(default_factory=dict)
    seen: dict[str, Float[np.ndarray, " C"]] = field(default_factory=dict)
    positions: int = 0

    def add(self, batch: Shaped[np.ndarray, "..."], facts: Facts, sizes: dict[str, int]) -> None:
        """The sums of one more batch; ``sizes`` are those of the ends."""
        n = 0
        for site, ci in facts.ci.items():
            x = np.asarray(facts.activations[site], np.float64).reshape(-1, ci.shape[-1])
            n = x.shape[0]
            _plus(self.mass, site, np.asarray(ci, np.float64).reshape(x.shape).sum(0))
            _plus(self.squares, site, np.square(x).sum(0))
            _plus(self.seen, site, np.full(x.shape[1], float(n)))
        self.positions += n
        for name, rows in facts.rows.items():
            _plus(self.mass, name, np.bincount(np.asarray(rows).reshape(-1), minlength=sizes[name]).astype(np.float64))
        if INPUT in sizes:
            _plus(self.mass, INPUT, (batch.reshape(-1, batch.shape[-1]) != 0).sum(0).astype(np.float64))
        outputs = np.asarray(facts.outputs, np.float64)
        if facts.predicted is None:
            squares = np.square(outputs).reshape(-1, outputs.shape[-1]).sum(0)
            seen = np.full(squares.shape, float(n))
        else:
            tokens = np.asarray(facts.predicted).reshape(-1)
            seen = np.bincount(tokens, minlength=sizes[OUTPUT]).astype(np.float64)
            squares = np.bincount(tokens, np.square(outputs).reshape(-1), minlength=sizes[OUTPUT])
        _plus(self.squares, OUTPUT, squares)
        _plus(self.seen, OUTPUT, seen)

    def rms(self, site: str) -> Float[np.ndarray, " C"]:
        """Root mean square of every target's activation."""
        return np.sqrt(self.squares[site] / np.maximum(self.seen[site], 1.0))


def _plus(sums: dict[str, np.ndarray], name: str, more: np.ndarray) -> None:
    sums[name] = sums[name] + more if name in sums else more


def end_sizes(run: Run, batch: Shaped[Array, "..."], facts: Facts) -> dict[str, int]:
    """How many sources each embedding or input has, and how many targets the output."""
    matrices = run.experiment.target.matrices()
    sizes = {name: matrices[name][0] for name in facts.rows}
    if jnp.issubdtype(batch.dtype, jnp.floating):
        sizes[INPUT] = batch.shape[-1]
    return sizes | {OUTPUT: run.output(batch).shape[-1]}


def attribute_data(
    run: Run,
    batches: int,
    targets: str = "*",
    outputs: int = 128,
    watch: Watch = unwatched,
    parts: Parts[Asked] | None = None,
) -> Attributions:
    """Attributions of everything upstream to every alive subcomponent and to the output, summed over data.

    A subcomponent is alive where its mean lower CI is above 1e-6 on these data. Of a language model the targets at the
    output are the logits of predicted tokens, each summed over the positions where it is the likeliest.

    Args:
        run: opened.
        batches: evaluation batches of the run's own stream.
        targets: glob over sites, ``output`` among them.
        outputs: at most so many tokens, those that are predicted most often.
        watch: of the number of targets over all batches, called with how many are done.
        parts: where the sums are kept from time to time, and gone on from; begun, and held by this process.

    Raises:
        RunError: a glob that matches no site.
        Stopped: a signal came; with ``parts``, what was summed is kept.
    """
    sites = matched_sites(run, targets)
    effects, totals, sizes = Effects(run, by_position=False), Totals(), dict[str, int]()
    for i in range(batches):
        batch = run.batch(i)
        facts = effects.facts(batch)
        sizes = sizes or end_sizes(run, batch, facts)
        totals.add(np.asarray(batch), facts, sizes)
    chosen = {site: np.flatnonzero(_targets(site, totals, outputs)) for site in sites if site not in lookups(run)}
    axes = (
        FlatAxis(dict(run.axis.sizes) | {name: n for name, n in sizes.items() if name != OUTPUT}),
        FlatAxis(dict(run.axis.sizes) | {OUTPUT: sizes[OUTPUT]}),
    )
    sums = Sums({site: np.zeros((2, len(index), len(axes[0])), np.float32) for site, index in chosen.items()})
    if parts is not None and (kept := parts.done()):
        sums.load(parts.place(0, kept), kept)
    _sum_up(run, effects, chosen, axes[0], sums, batches, watch, parts)
    return _kept(axes, totals, chosen, sums.rows)


def _sum_up(
    run: Run,
    effects: Effects,
    chosen: Mapping[str, Int[np.ndarray, " _n"]],
    sources: FlatAxis,
    sums: Sums,
    batches: int,
    watch: Watch,
    parts: Parts[Asked] | None,
) -> None:
    """Take the targets that are left, batch by batch."""
    total = batches * sum(map(len, chosen.values()))
    left = (chunk for chunk in _order(chosen, batches) if chunk.before >= sums.done)
    with StopSignals() as signals, signals.deferred() as stopped, watch(total) as show:
        show(sums.done)
        for number, own in groupby(left, lambda chunk: chunk.batch):
            batch = run.batch(number)
            facts = effects.facts(batch)
            for _, _, site, places in own:
                wanted = Wanted(jnp.asarray(chosen[site][np.resize(places, CHUNK)]))
                _add(sums.rows[site], places, sources, effects.of(site, batch, facts, wanted))
                sums.done += len(places)
                show(sums.done)
                _keep(sums, total, parts, stopped())


class _Chunk(NamedTuple):
    """Targets of one backward program: how many precede them, of which batch and site, and their places there."""

    before: int
    batch: int
    site: str
    places: Int[np.ndarray, " _k"]


def _order(chosen: Mapping[str, Int[np.ndarray, " _n"]], batches: int) -> Iterator[_Chunk]:
    before = 0
    for batch in range(batches):
        for site, index in chosen.items():
            for first in range(0, len(index), CHUNK):
                places = np.arange(first, min(first + CHUNK, len(index)))
                yield _Chunk(before, batch, site, places)
                before += len(places)


def _keep(sums: Sums, total: int, parts: Parts[Asked] | None, asked: bool) -> None:
    """Save where it is time to, and leave where a signal asks for it and something is left to do."""
    if parts is not None and (asked or parts.due()):
        parts.save(sums.save, sums.done)
    if asked and sums.done < total:
        there = "; the same command goes on there" if parts is not None else ""
        raise Stopped(f"stopped by a signal after {sums.done:,} of {total:,} targets{there}")


def _add(
    sums: Float[np.ndarray, "2 _n _s"],
    places: Int[np.ndarray, " _k"],
    sources: FlatAxis,
    found: tuple[dict[str, Float[Array, "..."]], dict[str, Float[Array, "..."]] | None],
) -> None:
    """Signed and absolute attributions of a chunk of targets, into their rows."""
    for into, values in zip(sums, found, strict=True):
        assert values is not None
        into[places] += sources.joined({s: np.asarray(values[s])[: len(places)] for s in sources.sizes})


def matched_sites(run: Run, glob: str) -> list[str]:
    """The sites of a glob, ``output`` among them.

    Raises:
        RunError: where it matches none.
    """
    sites = [site for site in (*run.sites, OUTPUT) if fnmatchcase(site, glob)]
    if not sites:
        raise RunError(
            f"--targets {glob!r} matches no site; the sites are {', '.join(run.sites[:12])}, ... and {OUTPUT}"
        )
    return sites


def lookups(run: Run) -> set[str]:
    """Decomposed embeddings: sources, and never targets, since nothing flows into a row that is looked up."""
    return {name for name, (_, _, kind) in run.experiment.target.matrices().items() if kind == "embedding"}


def _targets(site: str, totals: Totals, outputs: int) -> Bool[np.ndarray, " C"]:
    if site != OUTPUT:
        return totals.mass[site] / totals.positions > ALIVE_MEAN_CI
    seen = totals.seen[OUTPUT]
    often = np.argsort(-seen, kind="stable")[:outputs]
    return (seen > 0) & np.isin(np.arange(len(seen)), often)


def _kept(
    axes: tuple[FlatAxis, FlatAxis],
    totals: Totals,
    chosen: dict[str, Int[np.ndarray, " _n"]],
    sums: dict[str, Float[np.ndarray, "2 _n _s"]],
) -> Attributions:
    """Normalised, and of every source and every target the strongest alone."""
    sources, targets = axes
    mass = sources.joined(totals.mass)
    rms = targets.joined({site: totals.rms(site) for site in targets.sizes})
    places = np.concatenate([targets.starts[site] + index for site, index in chosen.items()])
    every = np.concatenate([sums.pop(site) for site in chosen], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        every /= (rms[places][:, None] * mass).astype(np.float32)
    every = np.nan_to_num(every, nan=0.0, posinf=0.0, neginf=0.0, copy=False)
    strong = _strongest(every[1], 0) | _strongest(every[1], 1) | _strongest(every[0], 0) | _strongest(every[0], 1)
    row, column = np.nonzero(strong & (every != 0).any(0))
    signed, absolute = every[0][row, column], every[1][row, column]
    return Attributions(sources, targets, column, places[row], signed, absolute, mass, rms, positions=totals.positions)


def _strongest(values: Float[np.ndarray, "n s"], axis: int) -> Bool[np.ndarray, "n s"]:
    """Where the KEPT largest magnitudes along an axis are."""
    size = np.abs(values)
    if values.shape[axis] <= KEPT:
        return np.ones(values.shape, bool)
    bar = np.partition(size, -KEPT, axis=axis).take([-KEPT], axis=axis)
    return size >= bar


def site_strengths(found: Attributions) -> Float[np.ndarray, "n m"]:
    """How much flows between sites a position: ``Σ absolute · mass / positions`` over the kept entries.

    Returns:
        Source sites down, target sites across, in the order of the axes.
    """
    strength = np.abs(found.absolute) * found.mass[found.source] / found.positions
    rows, columns = (
        np.searchsorted(list(axis.starts.values()), places, side="right") - 1
        for axis, places in ((found.sources, found.source), (found.targets, found.target))
    )
    table = np.zeros((len(found.sources.sizes), len(found.targets.sizes)))
    np.add.at(table, (rows, columns), strength)
    return table
