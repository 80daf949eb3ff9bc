"""A harvest of a run: one pass over its batches, saved as it goes, in one process or in shards."""

import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vpd.analysis.harvest.feed import example_width, feed
from vpd.analysis.harvest.one_pass import look
from vpd.analysis.harvest.settings import KIND, Settings
from vpd.analysis.harvest.store import write_harvest
from vpd.analysis.harvest.totals import Totals
from vpd.analysis.parts import Parts
from vpd.analysis.run import Run
from vpd.errors import RunError, Stopped
from vpd.progress import bar_unless, training_meter
from vpd.signals import StopSignals


def harvest(
    run: Run, settings: Settings, name: str = "default", shard: int = 0, force: bool = False, quiet: bool = False
) -> Path | None:
    """Read the batches of a shard, or go on with them; the shard that ends last merges all and writes the harvest.

    Args:
        run: an opened run.
        settings: from :func:`~vpd.analysis.harvest.feed.settings_for`.
        name: of the artefact ``<run>/harvest/<name>``.
        shard: which one, from 0.
        force: replace a harvest of this name, once the new one is finished.
        quiet: no progress bar.

    Returns:
        The finished harvest; None while other shards are missing.

    Raises:
        RunError: a name that is taken, a shard that another process reads, or one begun with other settings.
        Stopped: a signal came; what was read is saved.
    """
    if not 0 <= shard < settings.shards:
        raise RunError(f"there is no shard {shard} of {settings.shards}; they are 0 to {settings.shards - 1}")
    parts = Parts(run.path, KIND, name, Settings)
    path = parts.begin(settings, force)
    with parts.held(f"shard {shard}"):
        totals = _read(run, settings, parts, shard, quiet)
    if any(parts.done(other) < len(settings.own(other)) for other in range(settings.shards)):
        return None
    with parts.held("the merge", wanted=False) as is_mine:
        if not is_mine or not parts.plan.is_file():  # another shard ended at the same moment, and merges
            return None
        _merge_others(run, settings, parts, shard, totals)
        write_harvest(path, run, settings, totals)
        shutil.rmtree(parts.path)
    return path


def _read(run: Run, settings: Settings, parts: Parts[Settings], shard: int, quiet: bool) -> Totals:
    """What a shard adds up, from where it was saved."""
    width = example_width(run, settings.split)
    totals = Totals(settings, len(run.axis), width, parts.scratch(shard))
    if saved_batches := parts.done(shard):
        totals.load(parts.place(shard, saved_batches))
    own, rows = settings.own(shard), settings.rows * settings.length
    if totals.batches == len(own):
        return totals
    threshold = jnp.asarray(settings.threshold, jnp.float32)
    program = jax.jit(partial(look, run.experiment.problem, settings.vocab is not None))
    take = feed(run, settings.split, settings.rows)
    what, unit = ("harvesting", "position" if settings.vocab is None else "token")
    with (
        StopSignals() as signals,
        signals.deferred() as stopped,
        training_meter(len(own) * rows, totals.batches * rows, bar_unless(quiet), what, unit) as meter,
    ):
        for number in own[totals.batches :]:
            batch = take(number)
            seen = program(run.experiment.target, run.decomposition, batch, threshold)
            totals.add(number, np.asarray(batch), seen)
            meter(totals.batches * rows, {})
            asked = stopped()
            if asked or parts.due():
                parts.save(totals.save, totals.batches, shard)
            if asked and totals.batches < len(own):
                raise Stopped(
                    f"stopped by a signal after {totals.batches} of {len(own)} batches; the same command goes on there"
                )
        parts.save(totals.save, totals.batches, shard)
    return totals


def _merge_others(run: Run, settings: Settings, parts: Parts[Settings], shard: int, totals: Totals) -> None:
    width = example_width(run, settings.split)
    for other in range(settings.shards):
        if other != shard and parts.done(other):
            scratch = parts.scratch(other)
            part = Totals(settings, len(run.axis), width, scratch)
            part.load(parts.place(other, parts.done(other)))
            totals.merge(part)
            del part
            shutil.rmtree(scratch)
