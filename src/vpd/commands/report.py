"""``vpd report``: one run's report, or several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

import typer

from vpd.errors import RunError
from vpd.evaluation.report import write_report
from vpd.pretrain.report import is_pretraining, write_pretraining_report
from vpd.run_directory import write_atomically


def report_command(paths: Sequence[Path], page: Path | None) -> None:
    """Write the page and print its path."""
    if len(paths) == 1:
        if page is not None:
            raise RunError(f"-o is for several runs; the report of one lies in it, as {paths[0] / 'report.html'}")
        typer.echo(write_pretraining_report(paths[0]) if is_pretraining(paths[0]) else write_report(paths[0]))
        return
    typer.echo(write_runs_page(paths, page))


def write_runs_page(paths: Sequence[Path], page: Path | None) -> Path:
    """Several runs side by side, whole or not at all; beside the first of them by default.

    Raises:
        RunError: a run that can't be read or is given twice, or a place that can't be written.
    """
    from vpd.analysis.run_labels import place_beside
    from vpd.analysis.side_by_side import read_runs, runs_page

    for path in paths:
        if is_pretraining(path):
            raise RunError(f"{path} is a pretraining run, which stands beside no decomposition; leave it out")
    path = page or place_beside(paths, "report").with_suffix(".html")
    if path.is_dir():
        raise RunError(f"{path} is a folder; give a file with -o")
    write_atomically(path, runs_page(read_runs(paths)))
    return path
