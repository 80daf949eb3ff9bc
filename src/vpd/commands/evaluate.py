"""``vpd evaluate``: a run's decomposition on fresh evaluation batches, without its training state."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import typer

from vpd.analysis.run import Run, open_run
from vpd.commands.tables import number, print_diagnoses, print_sums, print_verdict
from vpd.config import read_run_file
from vpd.config.choice import is_of, with_metrics
from vpd.config.run import Eval, RunConfig
from vpd.errors import RunError
from vpd.evaluation.course import diagnose_run
from vpd.evaluation.language_report import matrix_rows, sum_rows, without_matrices
from vpd.evaluation.run_records import read_records
from vpd.evaluation.suite import Evaluation, Suite
from vpd.experiment import batches as evaluation_batches
from vpd.run_directory import RunDirectory, finite

DEFAULT_BATCHES = 10


def evaluate_command(
    path: Path, step: str | None, batches: int | None, as_json: bool, metrics: Sequence[str] = ()
) -> None:
    """Print metrics and verdict, as tables or as one JSON object; of named metrics their values alone.

    Args:
        path: the run directory.
        step: a checkpoint's, or ``latest``.
        batches: in place of those of the run file.
        as_json: one object.
        metrics: names; all of the run file where there are none.
    """
    at, pinned = _step(step), RunDirectory(path).config
    if metrics and pinned.is_file():
        config = read_run_file(pinned).config
        with_metrics(config, _block(config, batches), metrics)  # before the run is opened, which may take long
    run = open_run(path, at)
    if metrics:
        _print_named(run, evaluate_named(run, metrics, batches), as_json)
        return
    found = evaluate_run(run, batches)
    evals = read_records(run.path).eval if run.directory.metrics.exists() else []
    diagnoses = diagnose_run(run.config, evals, found.health, run.step) or []
    if as_json:
        result = {
            "run": str(run.path),
            "step": run.step,
            "metrics": found.metrics,
            "verdict": {"solved": found.solved, "rows": found.verdict},
            "intervals": found.intervals,
            "health": found.vital_signs,
            "diagnoses": [diagnosis.as_record() for diagnosis in diagnoses],
        }
        typer.echo(json.dumps(finite(result)))
        return
    if found.verdict:
        print_verdict(found.verdict, f"{run.path.name}, step {run.step}: {found.headline}")
    shown = found.metrics
    if run.config.target_kind == "lm":
        matrices = matrix_rows(run.config, found.metrics)
        shown = without_matrices(found.metrics, matrices)
        if matrices:
            print_sums(sum_rows(run.config, matrices))
    _print_metrics(found, shown)
    print_diagnoses(diagnoses)


def _step(written: str | None) -> int | None:
    if written is None or written == "latest":
        return None
    if not written.isdecimal():
        raise RunError(f"--step {written}: write the step of a checkpoint, or latest")
    return int(written)


def _print_named(run: Run, found: Evaluation, as_json: bool) -> None:
    """Values of named metrics; no verdict and no diagnoses, which go by others."""
    if as_json:
        result = {"run": str(run.path), "step": run.step, "metrics": found.metrics, "intervals": found.intervals}
        typer.echo(json.dumps(finite(result | {"verdict": None, "diagnoses": None})))
        return
    _print_metrics(found, found.metrics)


def _print_metrics(found: Evaluation, shown: Mapping[str, float | int]) -> None:
    for name, value in shown.items():
        typer.echo(f"{name:48s} {number(value)}{_interval(found, name)}")


def _interval(found: Evaluation, name: str) -> str:
    low, high = found.intervals.get(name, (math.nan, math.nan))
    return "" if math.isnan(low) else f"  [{number(low)}, {number(high)}]"


def evaluate_run(run: Run, batches: int | None = None) -> Evaluation:
    """One pass over the evaluation stream of an opened run."""
    block = _block(run.config, batches)
    config = run.config.model_copy(update={"eval": block})
    return _suite(run, config, block).evaluate(run.decomposition, {}, run.step)


def evaluate_named(run: Run, names: Sequence[str], batches: int | None = None) -> Evaluation:
    """The same pass, of named metrics alone; they have the values that they have among all.

    Raises:
        ConfigError: a name that can't be evaluated.
    """
    config, trained = with_metrics(run.config, _block(run.config, batches), names)
    assert config.eval is not None
    found = _suite(run, config, config.eval, trained).evaluate(run.decomposition, {}, run.step, judge=False)
    found.metrics = {name: value for name, value in found.metrics.items() if any(is_of(name, key) for key in names)}
    found.intervals = {name: bounds for name, bounds in found.intervals.items() if name in found.metrics}
    return found


def _block(config: RunConfig, batches: int | None) -> Eval:
    block = config.eval or Eval(
        batch_size=config.pd.batch_size, n_steps=DEFAULT_BATCHES, every=1, slow_every=1, metrics=()
    )
    return block.model_copy(update={"n_steps": batches or block.n_steps})


def _suite(run: Run, config: RunConfig, block: Eval, trained: Collection[str] | None = None) -> Suite:
    target = run.experiment.target
    draw = evaluation_batches(config, target, block.batch_size, "eval", data=run.experiment.data)
    return Suite(config, run.experiment.problem, target, draw, adversaries=False, trained=trained)
