"""``vpd train``: run files in, run directories out."""

import json
from dataclasses import replace
from pathlib import Path

import typer

from vpd.commands.family import refuse_unfinished, train_family
from vpd.commands.tables import print_diagnoses, print_verdict
from vpd.config import RunConfig, RunFile, read_run_file
from vpd.errors import ConfigError
from vpd.evaluation.course import diagnose_run
from vpd.evaluation.diagnosis import Diagnosis
from vpd.evaluation.run_records import read_records
from vpd.face import read_with
from vpd.hosts import is_first, several
from vpd.progress import say
from vpd.run import Outcome, refuse_another_run, run, run_id_of, run_path
from vpd.run_directory import RunDirectory, finite, refuse_unwritable
from vpd.signals import PATIENCE, STOPPED


def train_command(
    sources: list[Path],
    out_dir: Path | None,
    run_id: str | None,
    steps: int | None,
    seed: int | None,
    seeds: int | None,
    jobs: int,
    override: bool,
    quiet: bool,
    as_json: bool = False,
) -> int:
    """Train each file, or ``seeds`` seeds of each; all are read before the first starts.

    One run is trained in this process, several in processes of their own, ``jobs`` at a time.

    Returns:
        The exit code: 0, or 75 where a signal stopped a run.

    Raises:
        FamilyError: some of several runs failed; the others are finished.
    """
    plans = [read_source(source, out_dir, run_id, steps, seed) for source in sources]
    if seeds is not None:
        plans = [one for read in plans for one in _seeds_of(read, seeds)]
    paths = [run_path(read.config, read.name) for read in plans]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"run_id: two of the files mean the run directory {path}; give each a run_id of its own")
    for notice in dict.fromkeys(notice for read in plans for notice in read.notices):
        say(notice)
    if len(plans) > 1 and several():
        raise ConfigError("--coordinator, --distributed: several runs were given; several processes train one run")
    if len(plans) > 1 and override:
        raise ConfigError("--override-config: several runs were given; go on with one at a time")
    if len(plans) > 1 and as_json:
        raise ConfigError("--json: several runs were given; write the progress of one at a time")
    if len(plans) > 1:
        return _train_several(plans, paths, jobs, quiet)
    outcome = run(plans[0].config, plans[0].name, quiet, say, override=override, patience=PATIENCE, as_json=as_json)
    if is_first():
        (_print_json if as_json else _print_result)(outcome)
    return 0 if outcome.finished else STOPPED


def _seeds_of(read: RunFile, seeds: int) -> list[RunFile]:
    """The same run file with consecutive seeds from its own, each with a run directory of its own."""
    first, name = read.config.pd.seed, run_id_of(read.config, read.name)
    family = range(first, first + seeds)
    # Notices are about the file, which was read once.
    return [replace(read, config=read_with(read.config, seed=k, run_id=f"{name}-seed-{k}").config) for k in family]


def _train_several(plans: list[RunFile], paths: list[Path], jobs: int, quiet: bool) -> int:
    finished = [is_finished(path, read.config) for path, read in zip(paths, plans, strict=True)]
    for path, done in zip(paths, finished, strict=True):
        if done:
            say(f"{path} is finished already, skipped")
    update = [{"run_id": path.name, "out_dir": str(path.parent)} for path in paths]
    configs = [read.config.model_copy(update=change) for read, change in zip(plans, update, strict=True)]
    left = [config for config, done in zip(configs, finished, strict=True) if not done]
    family = train_family(left, [str(config.run_id) for config in left], jobs, quiet)
    for path in paths:
        if path.exists():
            typer.echo(str(path))
    refuse_unfinished(family)
    return 0


def is_finished(path: Path, config: RunConfig) -> bool:
    """Whether there is nothing left to train; a run directory that can't be made or gone on with is refused."""
    if not path.exists():
        refuse_unwritable(path)
        return False
    directory = RunDirectory(path)
    refuse_another_run(directory, config)
    return directory.read_facts().get("status") == "finished"


def read_source(source: Path, out_dir: Path | None, run_id: str | None, steps: int | None, seed: int | None) -> RunFile:
    """A run file as given; a run directory means its pinned one, and goes on where it lies."""
    if source.is_dir():
        directory = RunDirectory(source)
        directory.read_facts()
        place = source.resolve()
        source, out_dir, run_id = directory.config, out_dir or place.parent, run_id or place.name
    return read_with(source, steps=steps, seed=seed, out_dir=out_dir, run_id=run_id)


def _print_json(outcome: Outcome) -> None:
    """One object: where the run is, whether all its steps were made, and what its last evaluation found."""
    directory, found = outcome.directory, outcome.evaluation
    result: dict[str, object] = {
        "kind": "result",
        "run": str(directory.path),
        "finished": outcome.finished,
        "step": found.step if found else None,
        "metrics": found.metrics if found else None,
        "verdict": {"solved": found.solved, "rows": found.verdict} if found else None,
        "diagnoses": [one.as_record() for one in _diagnoses(outcome)],
    }
    typer.echo(json.dumps(finite(result)))


def _diagnoses(outcome: Outcome) -> list[Diagnosis]:
    directory = outcome.directory
    if not (outcome.finished and directory.metrics.exists()):
        return []
    return diagnose_run(read_run_file(directory.config).config, read_records(directory.path).eval) or []


def _print_result(outcome: Outcome) -> None:
    path = outcome.directory.path
    if not outcome.finished:
        say(f"stopped by a signal; `vpd train {path}` goes on from here")
    elif outcome.evaluation is not None and outcome.evaluation.verdict:
        evaluation = outcome.evaluation
        print_verdict(evaluation.verdict, f"{path.name}: {evaluation.headline} after {evaluation.step} steps")
    print_diagnoses(_diagnoses(outcome))
    report = path / "report.html"
    if report.exists():
        typer.echo(f"report: {report}")
    typer.echo(str(path))
