"""``vpd train``: run files in, run directories out."""

from pathlib import Path

import typer

from vpd.commands.tables import print_verdict
from vpd.config import RunFile
from vpd.errors import ConfigError
from vpd.experiment import Outcome, run, run_path
from vpd.face import read_with
from vpd.run_directory import RunDirectory

STOPPED = 75


def train_command(
    sources: list[Path],
    out_dir: Path | None,
    run_id: str | None,
    steps: int | None,
    seed: int | None,
    quiet: bool,
) -> int:
    """Train each file in turn; all are read before the first starts.

    Returns:
        The exit code: 0, or 75 where a signal stopped a run.
    """
    plans = [_plan(source, out_dir, run_id, steps, seed) for source in sources]
    paths = [run_path(read.config, read.name) for read in plans]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"run_id: two of the files mean the run directory {path}; give each a run_id of its own")
    for read in plans:
        for notice in read.notices:
            _say(notice)
    for read in plans:
        outcome = run(read.config, read.name, quiet, _say)
        _print_result(outcome)
        if not outcome.finished:
            return STOPPED
    return 0


def _plan(source: Path, out_dir: Path | None, run_id: str | None, steps: int | None, seed: int | None) -> RunFile:
    """A run file as given; a run directory means its pinned one, and goes on where it lies."""
    if source.is_dir():
        directory = RunDirectory(source)
        directory.read_facts()
        place = source.resolve()
        source, out_dir, run_id = directory.config, out_dir or place.parent, run_id or place.name
    return read_with(source, steps=steps, seed=seed, out_dir=out_dir, run_id=run_id)


def _print_result(outcome: Outcome) -> None:
    path = outcome.directory.path
    if not outcome.finished:
        _say(f"stopped by a signal; `vpd train {path}` goes on from here")
    elif outcome.evaluation is not None and outcome.evaluation.verdict:
        solved = "solved" if outcome.evaluation.solved else "not solved"
        print_verdict(outcome.evaluation.verdict, f"{path.name}: {solved} after {outcome.evaluation.step} steps")
    report = path / "report.html"
    if report.exists():
        typer.echo(f"report: {report}")
    typer.echo(str(path))


def _say(sentence: str) -> None:
    typer.echo(f"vpd: {sentence}", err=True)
