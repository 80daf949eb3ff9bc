"""``vpd pretrain``: a pretraining file in, a run directory with a language model out."""

from dataclasses import replace
from pathlib import Path

import typer

from vpd.config import PretrainingFile, read_document, read_pretraining_file
from vpd.pretrain import Outcome, pretrain
from vpd.progress import say
from vpd.run_directory import RunDirectory
from vpd.signals import PATIENCE, STOPPED


def pretrain_command(
    source: Path, out_dir: Path | None, run_id: str | None, steps: int | None, seed: int | None, quiet: bool
) -> int:
    """Train the network of a file, or go on in a run directory.

    Returns:
        The exit code: 0, or 75 where a signal stopped the run.
    """
    read = _read(source, out_dir, run_id, steps, seed)
    for notice in read.notices:
        say(notice)
    outcome = pretrain(read.config, read.name, quiet, say, PATIENCE)
    _print_result(outcome)
    return 0 if outcome.finished else STOPPED


def _read(
    source: Path, out_dir: Path | None, run_id: str | None, steps: int | None, seed: int | None
) -> PretrainingFile:
    """A file as given, with some values replaced; a run directory means its pinned one, and goes on where it lies."""
    if source.is_dir():
        directory = RunDirectory(source)
        directory.read_facts()
        place = source.resolve()
        source, out_dir, run_id = directory.config, out_dir or place.parent, run_id or place.name
    given = {"out_dir": None if out_dir is None else str(out_dir), "run_id": run_id, "steps": steps, "seed": seed}
    content = read_document(source) | {key: value for key, value in given.items() if value is not None}
    return replace(read_pretraining_file(content), name=source.stem)


def _print_result(outcome: Outcome) -> None:
    path = outcome.directory.path
    if not outcome.finished:
        say(f"stopped by a signal; `vpd pretrain {path}` goes on from here")
    if outcome.validation is not None:
        typer.echo(f"validation loss: {outcome.validation:.4f} nats a token{_beside(outcome)}")
    report = path / "report.html"
    if report.exists():
        typer.echo(f"report: {report}")
    typer.echo(str(path))


def _beside(outcome: Outcome) -> str:
    counted = outcome.baselines
    return f" (bigram {counted.bigram:.4f}, unigram {counted.unigram:.4f})" if counted else ""
