"""``vpd train``: run files in, run directories out."""

from pathlib import Path

import typer

from vpd.commands.tables import print_verdict
from vpd.config import read_run_file
from vpd.experiment import Outcome, run
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
    plans = [read_with(_run_file(source), steps=steps, seed=seed, out_dir=out_dir, run_id=run_id) for source in sources]
    for source in sources:
        for notice in read_run_file(_run_file(source)).notices:
            _say(notice)
    for config, name in plans:
        outcome = run(config, name, quiet, _say)
        _print_result(outcome)
        if not outcome.finished:
            return STOPPED
    return 0


def _run_file(source: Path) -> Path:
    """The run file that is meant: a run directory means its pinned one."""
    if source.is_dir():
        directory = RunDirectory(source)
        directory.read_facts()
        return directory.config
    return source


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
