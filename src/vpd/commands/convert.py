"""``vpd config convert``: a run file of an older vocabulary in, today's out, and a report on every field."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpd.config import read_document
from vpd.config.block import listed, refusal
from vpd.config.legacy.convert import Conversion, check_native, convert_document
from vpd.config.legacy.draft import Row
from vpd.errors import ConfigError
from vpd.run_directory import write_atomically

_STYLES = {"refused": "red", "computed": "yellow", "added": "yellow", "dropped": "dim"}
_KINDS = ("taken", "renamed", "computed", "dropped", "refused")


def convert_command(source: Path, out: Path | None, force: bool, as_json: bool) -> None:
    """Write the converted file, or nothing at all.

    Args:
        source: the older file.
        out: where the new one is written; None prints it, and the report goes to standard error.
        force: whether a file at `out` is replaced.
        as_json: print one JSON object instead, which holds the new file where `out` is None.

    Raises:
        ConfigError: where something can't be converted; the whole report is printed first.
    """
    if out is not None:
        _check_place(out, force)
    document = read_document(source)
    found = convert_document(document)
    if found is None:
        _say_native(source, check_native(document), as_json)
        return
    text = found.text
    if out is not None and text is not None:
        write_atomically(out, text)
    if as_json:
        typer.echo(json.dumps(_record(source, out, found)))
    else:
        _print_report(found, _console(to_stderr=out is None))
        if out is None and text is not None:
            typer.echo(text, nl=False)
        elif text is not None:
            typer.echo(str(out))
    if text is None:
        raise _refused(source, found)


def _check_place(out: Path, force: bool) -> None:
    if out.is_dir():
        raise refusal(str(out), "is a directory", "give the name of a file")
    if not out.parent.is_dir():
        raise refusal(str(out), "there is no such folder to write to", "make it first")
    if out.exists() and not force:
        raise refusal(str(out), "is there already", "give another name, or --force to replace it")


def _say_native(source: Path, what: str, as_json: bool) -> None:
    if as_json:
        record = {"file": str(source), "vocabulary": "native", "converted": False, "written": None}
        typer.echo(json.dumps(record | {"fields": [], "added": [], "notices": [], "run_file": None}))
    else:
        typer.echo(f"{source}: a {what} in today's vocabulary already, there is nothing to convert")


def _record(source: Path, out: Path | None, found: Conversion) -> dict[str, object]:
    return {
        "file": str(source),
        "vocabulary": found.vocabulary,
        "converted": found.config is not None,
        "written": None if out is None or found.config is None else str(out),
        "fields": [asdict(row) for row in found.rows],
        "added": [asdict(row) for row in found.added],
        "notices": list(found.notices),
        "run_file": found.text if out is None else None,
    }


def _console(to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else 160)


def _print_report(found: Conversion, console: Console) -> None:
    counts = Counter(row.kind for row in found.rows)
    title = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])
    table = Table(title=f"{found.vocabulary} vocabulary: {title}", title_justify="left")
    for name in ("", "old key", "new key", "how or why"):
        table.add_column(name, overflow="fold")
    for row in (*found.rows, *found.added):
        table.add_row(*_cells(row))
    console.print(table)
    for line in (*_refusals(found), *(f"look at: {notice}" for notice in found.notices)):
        console.print(Text(line), soft_wrap=True)


def _refusals(found: Conversion) -> Iterator[str]:
    """One line for each reason; neighbours often share one."""
    for says, group in groupby(found.refused, key=lambda row: row.says):
        rows = list(group)
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield f"refused: {rows[0].old or rows[0].new}{more}: {says}"


def _cells(row: Row) -> tuple[Text, ...]:
    style = _STYLES.get(row.kind, "")
    return (Text(row.kind, style), Text(row.old or ""), Text(row.new or ""), Text(row.says))


def _refused(source: Path, found: Conversion) -> ConfigError:
    keys = [row.old or row.new for row in found.refused]
    fields = "1 field" if len(keys) == 1 else f"{len(keys)} fields"
    said = f"{fields} can't be converted: {listed(keys, 8)}"
    if found.vocabulary == "older pretraining":
        said = "is an older pretraining file, which is not read or converted"
    return refusal(str(source), said, "nothing was written, the report says what to write instead")
