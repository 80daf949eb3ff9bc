"""``vpd prune``: the subset of subcomponents that one behaviour needs."""

import json
from collections.abc import Mapping
from pathlib import Path

import typer
from rich.table import Table

from vpd.analysis.artefacts import artefact_path
from vpd.analysis.prompts import read_positions, read_prompt
from vpd.analysis.pruning import EXPLAINED, Effort, Pruning, prune, save_pruning
from vpd.analysis.pruning.question import Measure
from vpd.analysis.pruning.store import KIND, PICTURE
from vpd.analysis.run import open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.progress import watched
from vpd.run_directory import finite


def prune_command(
    path: Path,
    prompt: tuple[str | None, str | None, str | None],
    positions: str | None,
    measure: str,
    effort: Effort,
    name: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the subset, write it, and print it beside the others."""
    if measure not in ("ce", "kl"):
        raise RunError(
            f"--measure {measure!r}: write ce, cross-entropy of the next token, or kl, from the target's output"
        )
    run = open_run(path)
    asked = read_prompt(run, *prompt)
    at = read_positions(positions, len(asked.words))
    place = artefact_path(run.path, KIND, name, force)
    chosen: Measure = "ce" if measure == "ce" else "kl"
    found = prune(run, asked, at, chosen, effort, watched("pruning", "step", quiet))
    document = save_pruning(place, run, found)
    if as_json:
        typer.echo(json.dumps(finite({"path": str(place), **document}), ensure_ascii=False))
        return
    _print(found, f"{run.path.name}, step {run.step}")
    for subset, what in EXPLAINED.items():
        typer.echo(f"{subset}: {what}")
    typer.echo(f"picture: {place / PICTURE}")
    typer.echo(place)


def _print(found: Pruning, title: str) -> None:
    unit = "nats" if found.labels is not None else "squared error"
    measure = "cross-entropy" if found.measure == "ce" else "divergence"
    table = Table(
        title=f"{title}: {measure} at position {', '.join(map(str, found.positions))}, {unit}", title_justify="left"
    )
    for column in ("", "members", "distinct", "alone", "random rest", "adversary", "its worst", "without it"):
        table.add_column(column, justify="right" if column else "left")
    for name, subset in found.subsets.items():
        situations: list[Mapping[str, float]] = list(vars(subset.kept).values())
        values = [f"{situation[found.measure]:.4g}" for situation in situations]
        table.add_row(name, str(subset.size), str(subset.distinct), *values)
    results_console().print(table)
    if found.target_ce is not None:
        typer.echo(f"cross-entropy of the target: {found.target_ce:.4g}")
