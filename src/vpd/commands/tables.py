"""Verdicts as tables on the terminal."""

import math
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vpd.evaluation.diagnosis import Diagnosis
from vpd.evaluation.language_report import Matrix

Row = Mapping[str, object]


def results_console() -> Console:
    """Standard output; wide enough for every table where it is piped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def print_verdict(rows: Sequence[Row], title: str) -> None:
    """Measures down, sites across, each value marked where it misses its bar."""
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    measures = list(dict.fromkeys(str(row["measure"]) for row in rows))
    at = {(str(row["measure"]), str(row["site"])): row for row in rows}
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for site in sites:
        table.add_column(site, justify="right")
    table.add_column("expected")
    for measure in measures:
        cells = [_cell(at.get((measure, site))) for site in sites]
        expected = dict.fromkeys(str(at[measure, s]["expected"]) for s in sites if (measure, s) in at)
        table.add_row(measure, *cells, " / ".join(filter(None, expected)))
    results_console().print(table)


def print_diagnoses(diagnoses: Sequence[Diagnosis]) -> None:
    """What has failed, why that is said, and what to change; nothing where nothing has."""
    console = results_console()
    for diagnosis in diagnoses:
        console.print(f"[bold red]{diagnosis.name}[/bold red]: {escape(diagnosis.sentence)}")
        console.print(f"  {escape(diagnosis.knob)}")


def print_sums(rows: Sequence[Matrix]) -> None:
    """Numbers of subcomponents, summed over groups of matrices."""
    table = Table(title="subcomponents", title_justify="left")
    table.add_column("sum over")
    for column in ("C", "L0", "alive", "fires"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.name, *("" if math.isnan(x) else f"{x:,.6g}" for x in row[2:]))
    results_console().print(table)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    value = number(row["value"])
    match row["ok"]:
        case None:
            return f"{value}  "
        case False:
            return f"[red]{value} ✗[/red]"
        case _:
            return f"{value} ✓"


def number(value: object) -> str:
    """Counts as they are, other numbers with four decimals."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
