"""A harvest of a run: one pass over its batches, saved as it goes, in one process or in shards."""

import shutil
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vpd.analysis.harvest.feed import example_width, feed
from vpd.analysis.harvest.one_pass import look
from vpd.analysis.harvest.parts import Parts
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.harvest.store import write_harvest
from vpd.analysis.harvest.totals import Totals
from vpd.analysis.run import Run
from vpd.errors import RunError, Stopped
from vpd.progress import bar_unless, training_meter
from vpd.signals import StopSignals

# Seconds between saves; more where saving takes long.
SAVE_SECONDS, SAVE_SHARE = 60.0, 0.1


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
    parts = Parts(run.path, name)
    path = parts.begin(settings, force)
    with parts.held(f"shard {shard}"):
        totals = _read(run, settings, parts, shard, quiet)
    if any(_done(parts, other) < len(settings.own(other)) for other in range(settings.shards)):
        return None
    with parts.held("the merge"):
        if not parts.plan.is_file():  # another shard ended at the same moment, and has merged
            return path
        _merge_others(run, settings, parts, shard, totals)
        write_harvest(path, run, settings, totals)
        shutil.rmtree(parts.path)
    return path


def _read(run: Run, settings: Settings, parts: Parts, shard: int, quiet: bool) -> Totals:
    """What a shard adds up, from where it was saved."""
    width = example_width(run, settings.split)
    totals, state = Totals(settings, len(run.axis), width, parts.scratch(shard)), parts.state(shard)
    if state.is_dir():
        totals.load(state)
    own, rows = settings.own(shard), settings.rows * settings.length
    if totals.batches == len(own):
        return totals
    threshold = jnp.asarray(settings.threshold, jnp.float32)
    program = jax.jit(partial(look, run.experiment.problem, settings.vocab is not None))
    take = feed(run, settings.split, settings.rows)
    saved, pause = time.monotonic(), SAVE_SECONDS
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
            if stopped() or time.monotonic() - saved > pause:
                begun = time.monotonic()
                totals.save(state)
                saved = time.monotonic()
                pause = max(SAVE_SECONDS, (saved - begun) / SAVE_SHARE)
            if stopped() and totals.batches < len(own):
                raise Stopped(
                    f"stopped by a signal after {totals.batches} of {len(own)} batches; the same command goes on there"
                )
        totals.save(state)
    return totals


def _done(parts: Parts, shard: int) -> int:
    """How many batches of a shard are saved."""
    sums = parts.state(shard) / "sums.npz"
    if not sums.is_file():
        return 0
    with np.load(sums) as stored:
        return int(stored["batches"])


def _merge_others(run: Run, settings: Settings, parts: Parts, shard: int, totals: Totals) -> None:
    width = example_width(run, settings.split)
    for other in range(settings.shards):
        if other != shard:
            scratch = parts.scratch(other)
            part = Totals(settings, len(run.axis), width, scratch)
            part.load(parts.state(other))
            totals.merge(part)
            del part
            shutil.rmtree(scratch)
