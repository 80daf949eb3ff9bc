"""``vpd evaluate``: a run's decomposition on fresh evaluation batches, without its training state."""

import json
import math
from pathlib import Path

import typer

from vpd.analysis.run import Run, open_run
from vpd.commands.tables import number, print_diagnoses, print_sums, print_verdict
from vpd.config.run import Eval
from vpd.evaluation.course import diagnose_run
from vpd.evaluation.language_report import matrix_rows, sum_rows, without_matrices
from vpd.evaluation.run_records import read_records
from vpd.evaluation.suite import Evaluation, Suite
from vpd.experiment import batches as evaluation_batches
from vpd.run_directory import finite

DEFAULT_BATCHES = 10


def evaluate_command(path: Path, step: int | None, batches: int | None, as_json: bool) -> None:
    """Print metrics and verdict, as tables or as one JSON object."""
    run = open_run(path, step)
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
    for name, value in shown.items():
        typer.echo(f"{name:48s} {number(value)}{_interval(found, name)}")
    print_diagnoses(diagnoses)


def _interval(found: Evaluation, name: str) -> str:
    low, high = found.intervals.get(name, (math.nan, math.nan))
    return "" if math.isnan(low) else f"  [{number(low)}, {number(high)}]"


def evaluate_run(run: Run, batches: int | None = None) -> Evaluation:
    """One pass over the evaluation stream of an opened run."""
    config = run.config
    block = config.eval or Eval(
        batch_size=config.pd.batch_size, n_steps=DEFAULT_BATCHES, every=1, slow_every=1, metrics=()
    )
    block = block.model_copy(update={"n_steps": batches or block.n_steps})
    config = config.model_copy(update={"eval": block})
    target = run.experiment.target
    draw = evaluation_batches(config, target, block.batch_size, "eval", data=run.experiment.data)
    suite = Suite(config, run.experiment.problem, target, draw, adversaries=False)
    return suite.evaluate(run.decomposition, {}, run.step)
