"""``vpd edit``: ablate, boost or redirect subcomponents, measure the effect on target and off it, save the network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from vpd.analysis.editing.continuations import learned_continuations
from vpd.analysis.editing.edits import Edit
from vpd.analysis.editing.effect import Estimate, SetEffect, effects
from vpd.analysis.editing.search import Candidate, rank_ablations
from vpd.analysis.editing.sets import ALL, REST, Examples, examples_of
from vpd.analysis.editing.spec import parse_edits, read_edits
from vpd.analysis.editing.weights import refuse_unsavable
from vpd.analysis.run import Run, open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.run_directory import finite


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        ablate: ``SITE:INDEX,...``.
        boost: ``SITE:INDEX=FACTOR,...``.
        file: of edits.
        positions: where the edits of the command line hold.
        when_active: importance above which they hold.
        on: set of positions on target; None measures everything in one set.
        off: off target.
        rank: number of candidates to rank; None ranks none.
        find: number of learned continuations to list; None lists none.
        batches: of evaluation data.
        first: number of the first of them.
        save: folder to write the edited network to.
    """

    ablate: Sequence[str]
    boost: Sequence[str]
    file: Path | None
    positions: str | None
    when_active: float | None
    on: str | None
    off: str | None
    rank: int | None
    find: int | None
    batches: int
    first: int
    save: Path | None


def edit_command(path: Path, asked: Asked, as_json: bool, quiet: bool) -> None:
    """Measure, save and print."""
    edits = parse_edits(asked.ablate, asked.boost, asked.positions, asked.when_active)
    edits += [] if asked.file is None else read_edits(asked.file)
    if asked.rank is not None and asked.on is None:
        raise RunError("--rank compares subcomponents on target and off it; say what is on target with --on")
    if asked.save is not None and not edits:
        raise RunError("--save writes an edited network, and nothing is edited; name subcomponents with --ablate")
    if edits and (asked.rank is not None or asked.find is not None):
        raise RunError("--rank and --find look for what to edit; leave --ablate, --boost and --edits out with them")
    run = open_run(path)
    if asked.find is not None:
        _find(run, asked.find, asked.batches, as_json, quiet)
        return
    if asked.rank is not None:
        _rank(run, asked, as_json, quiet)
        return
    edited = run.edited(edits)
    if asked.save is not None:
        refuse_unsavable(run, edits, asked.save)
    examples = _examples(run, asked)
    found = effects(edited, examples, len(examples), quiet)
    if asked.save is not None:
        edited.save(asked.save)
    if as_json:
        record = {name: effect.as_record() for name, effect in found.items()}
        sets = {"on": asked.on or ALL, "off": _off(asked)}
        result = {
            "run": str(run.path),
            "step": run.step,
            "edits": [edit.as_record() for edit in edits],
            "sets": sets,
            **record,
            "saved": None if asked.save is None else str(asked.save),
        }
        typer.echo(json.dumps(finite(result)))
        return
    _print_effects(run, edits, found, asked)
    if asked.save is not None:
        typer.echo(str(asked.save))


def _off(asked: Asked) -> str | None:
    """Everything else, unless it is said otherwise; without a target set there is nothing off it."""
    if asked.on is None:
        return None
    if asked.off is not None:
        return asked.off
    return ALL if Path(asked.on).expanduser().is_file() else REST


def _examples(run: Run, asked: Asked) -> list[Examples]:
    if asked.on is None and asked.off is not None:
        raise RunError("--off is what --on is compared with; give --on too")
    return list(examples_of(run, asked.on or ALL, _off(asked), asked.batches, asked.first))


def _rank(run: Run, asked: Asked, as_json: bool, quiet: bool) -> None:
    assert asked.rank is not None
    found = rank_ablations(run, _examples(run, asked), asked.rank, quiet)
    if as_json:
        sets = {"on": asked.on, "off": _off(asked)}
        rows = [_candidate_record(one) for one in found]
        typer.echo(json.dumps(finite({"run": str(run.path), "step": run.step, "sets": sets, "candidates": rows})))
        return
    table = Table(title=f"on target: {asked.on}; off target: {_off(asked)}", title_justify="left")
    head = ["subcomponent", "CI on", "off", "alone: on", "off", "together: on", "off", "right: on", "off"]
    for i, word in enumerate(head):
        table.add_column(word, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for one in found:
        values = [_first(one.alone, name) for name in ("on", "off")]
        values += [_first(one.together, name) for name in ("on", "off")]
        right = [one.together[name].get("right_after") for name in ("on", "off")]
        cells = [f"{one.on_ci:.3f}", f"{one.off_ci:.3f}", *(f"{value:.4f}" for value in values)]
        cells += ["" if value is None else f"{value.value:.3f}" for value in right]
        table.add_row(str(one.subcomponent), *cells)
    results_console().print(table)
    typer.echo("alone, together (with all above): divergence from the unedited network, mean over positions.")
    typer.echo("right: the next token is the likeliest with all above ablated.")


def _find(run: Run, most: int, batches: int, as_json: bool, quiet: bool) -> None:
    found = learned_continuations(run, batches, most, quiet)
    if as_json:
        rows = [one.as_record() for one in found]
        typer.echo(json.dumps(finite({"run": str(run.path), "step": run.step, "continuations": rows})))
        return
    table = Table(title="continuations that the network expects", title_justify="left")
    for i, word in enumerate(["for --on", "sequences", "occurrences", "probability", "subcomponents"]):
        table.add_column(word, justify="left" if i == 0 else "right")
    for one in found:
        counts = [str(one.sequences), str(one.occurrences), f"{one.probability:.3f}", str(one.subcomponents)]
        table.add_row(escape(f"'{one.text}'"), *counts)
    results_console().print(table)
    typer.echo("Subcomponents: how many are more important there than on average, by 0.2 or more.")


def _first(found: Mapping[str, Mapping[str, Estimate]], name: str) -> float:
    return next(iter(found[name].values())).value


def _candidate_record(one: Candidate) -> dict[str, object]:
    kinds = {"alone": one.alone, "together": one.together}
    measured = {
        kind: {name: {key: e.as_record() for key, e in own.items()} for name, own in sets.items()}
        for kind, sets in kinds.items()
    }
    return {"subcomponent": str(one.subcomponent), "on_ci": one.on_ci, "off_ci": one.off_ci, **measured}


def _print_effects(run: Run, edits: Sequence[Edit], found: Mapping[str, SetEffect], asked: Asked) -> None:
    words = {"on": asked.on or ALL, "off": _off(asked)}
    table = Table(title=f"{run.path.name}, step {run.step}: {len(edits)} subcomponents edited", title_justify="left")
    table.add_column("measure")
    for name, effect in found.items():
        table.add_column(
            f"{name} target: {words[name]}\n{effect.positions} positions, {effect.sequences} sequences", justify="right"
        )
    for measure in next(iter(found.values())).measures:
        table.add_row(measure, *(_cell(effect.measures[measure]) for effect in found.values()))
    results_console().print(table)


def _cell(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f}  [{estimate.low:.4f}, {estimate.high:.4f}]"
