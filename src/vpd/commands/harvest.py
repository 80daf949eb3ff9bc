"""``vpd harvest``: one pass over data, counted and kept with the run."""

import json
import re
from pathlib import Path

import numpy as np
import typer
from rich.table import Table

from vpd.analysis.harvest.feed import settings_for
from vpd.analysis.harvest.harvest import harvest
from vpd.analysis.harvest.reading import Component, Harvest, open_harvest
from vpd.analysis.harvest.settings import KIND, Settings
from vpd.analysis.parts import Parts
from vpd.analysis.run import open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.machine import use_compile_cache
from vpd.progress import say

SHOWN = 8


def harvest_command(
    path: Path,
    positions: int,
    split: str,
    threshold: float,
    windows: int,
    context: int,
    seed: int,
    shard: str | None,
    name: str,
    step: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a harvest or a shard of it, or go on with one, and say what it found."""
    index, shards = parse_shard(shard)
    begun = None if force else Parts(path, KIND, name, Settings).planned()
    run = open_run(path, begun.step if begun is not None and step is None else step)
    use_compile_cache(run.config.runtime.compilation_cache_dir)
    settings = settings_for(run, positions, split, threshold, seed, windows, windows, context, shards)
    if settings.positions < positions and not quiet:
        say(f"the {split} split has {settings.positions:,} positions in whole batches; each is read once")
    found = harvest(run, settings, name, index, force, quiet)
    if found is None:
        say(f"shard {index} of {shards} is read; the harvest is written when the others are")
        return
    _show(open_harvest(path, name), settings, as_json)


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n`` as numbers; all in one without it.

    Raises:
        RunError: another form.
    """
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise RunError(f"{text!r} names no shard; write --shard I/N with I from 0 to N - 1, as in 0/4")
    return int(match[1]), int(match[2])


def _show(found: Harvest, settings: Settings, as_json: bool) -> None:
    """Where it is; the densest and the rarest, as a table or in one JSON object."""
    fired = found.firing_counts > 0
    alive = sum(one.alive for one in found.components)
    facts = {
        "harvest": str(found.path),
        "step": settings.step,
        "positions": found.positions,
        "threshold": settings.threshold,
        "subcomponents": len(fired),
        "fired": int(fired.sum()),
        "alive": alive,
        "fired_a_position": float(found.firing_counts.sum() / found.positions),
    }
    order = np.argsort(-found.firing_counts, kind="stable")[: int(fired.sum())]
    few = len(order) <= 2 * SHOWN
    densest = [found.components[i] for i in (order if few else order[:SHOWN])]
    rarest = [] if few else [found.components[i] for i in order[-SHOWN:]]
    if as_json:
        rows = {key: [_row(one) for one in some] for key, some in (("densest", densest), ("rarest", rarest))}
        typer.echo(json.dumps(facts | rows))
        return
    table = Table(
        title=f"{facts['fired']:,} of {len(fired):,} subcomponents fire (CI > {settings.threshold:g}), "
        f"{facts['fired_a_position']:,.4g} a position; {alive:,} have a mean CI above 1e-6",
        title_justify="left",
    )
    for column in ("subcomponent", "fires", "density", "mean CI", "norm"):
        table.add_column(column, justify="left" if column == "subcomponent" else "right")
    for part in (densest, rarest):
        for one in part:
            cells = f"{one.firing_count:,}", f"{one.density:.3g}", f"{one.mean_importance:.3g}", f"{one.norm:.3g}"
            table.add_row(one.name, *cells)
        table.add_section()
    results_console().print(table)
    typer.echo(found.path)


def _row(one: Component) -> dict[str, object]:
    return {"name": one.name, "firing_count": one.firing_count, "density": one.density, "mean_ci": one.mean_importance}
