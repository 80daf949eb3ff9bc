"""Reports of several runs as one page: their verdicts, what differs in their run files, their curves laid over."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vpd.analysis.outcomes import TradeOff, last_outcome, trade_off
from vpd.analysis.run_labels import refuse_repeated, short_labels
from vpd.config import changed_fields, read_run_file, values_of
from vpd.config.run import RunConfig
from vpd.evaluation.charts import Chart, Choice, Line, charts_data, drawable, is_wide
from vpd.evaluation.language_report import l0_series, matrix_rows, without_matrices
from vpd.evaluation.page import render_page
from vpd.evaluation.report import duration
from vpd.evaluation.run_charts import STEP
from vpd.evaluation.run_records import Record, metrics_of, number_of, series_of, steps_of
from vpd.evaluation.run_summary import Cell, Metric, RunSummary, summarize

MOST_CURVES = 150  # that a reader can choose from
# Where a run lies and what it is called differs always.
_NAMES = ("run_id", "run_name", "out_dir")


class Beside(NamedTuple):
    """One row of a table: its name, and what each run has there; None where it has nothing."""

    name: str
    cells: Sequence[Cell | Metric | str | None]


@dataclass(frozen=True)
class SideBySide:
    """Runs in the order given, each with its pinned run file."""

    labels: Sequence[str]
    runs: Sequence[RunSummary]
    configs: Sequence[RunConfig]


def read_runs(paths: Sequence[Path]) -> SideBySide:
    """Read run directories; neither their targets nor their checkpoints are opened.

    Raises:
        RunError: fewer than two, one given twice, or one that can't be read.
    """
    refuse_repeated(paths)
    runs = [summarize(path) for path in paths]
    configs = [read_run_file(path / "config.yaml").config for path in paths]
    return SideBySide(short_labels([path.resolve() for path in paths]), runs, configs)


def runs_page(found: SideBySide) -> str:
    """The page."""
    front = _front(found)
    charts = [chart for chart in (_losses(found), _evaluations(found), _front_chart(found, front)) if chart is not None]
    return render_page(
        "runs.html.jinja",
        labels=found.labels,
        runs=found.runs,
        durations=[_duration(run) for run in found.runs],
        headline=headline(found),
        verdict=verdict_rows(found.runs),
        fields=field_rows(found.configs),
        metrics=metric_rows(found.runs),
        charts=charts,
        charts_data=charts_data(charts),
    )


def headline(found: SideBySide) -> str:
    """How many of the runs are without fault."""
    n = len(found.runs)
    good = sum(run.headline.tone == "good" for run in found.runs)
    ill = sum(bool(run.diagnoses) for run in found.runs)
    told = f"{good} of {n} runs meet every measure"
    return told + (f", {ill} {'shows' if ill == 1 else 'show'} a known way to fail" if ill else "")


def verdict_rows(runs: Sequence[RunSummary]) -> list[Beside]:
    """Measures down, runs across."""
    columns = [{(cell.measure, cell.site): cell for cell in run.verdict} for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [Beside(" · ".join(filter(None, name)), [column.get(name) for column in columns]) for name in names]


def metric_rows(runs: Sequence[RunSummary]) -> list[Beside]:
    """Last values of all metrics, runs across."""
    columns = [{metric.name: metric for metric in run.metrics} for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [Beside(name, [column.get(name) for column in columns]) for name in names]


def field_rows(configs: Sequence[RunConfig]) -> list[Beside]:
    """Fields whose meaning differs in some run, with the value of each."""
    keys: dict[str, None] = {}
    for other in configs[1:]:
        changes = changed_fields(configs[0], other)
        keys |= dict.fromkeys((*changes.trajectory, *changes.other))
    kept = [key for key in keys if key not in _NAMES]
    values = [values_of(config, kept) for config in configs]
    return [Beside(key, [_value(own[key]) for own in values]) for key in kept]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(run: RunSummary) -> str:
    seconds = number_of(run.facts.get("seconds"))
    return "" if math.isnan(seconds) else duration(seconds)


def _losses(found: SideBySide) -> Chart | None:
    return _overlaid(
        "losses", "Training losses", "loss", "Term", found, lambda run, _: _trained(run.records.train), positive=True
    )


def _trained(records: Sequence[Record]) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    losses = series_of(records, "loss/")
    return steps_of(records), {name: losses[name] for name in sorted(losses, key=lambda name: name != "total")}


def _evaluations(found: SideBySide) -> Chart | None:
    def series(run: RunSummary, config: RunConfig) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        evals = [{name: number_of(value) for name, value in metrics_of(record).items()} for record in run.records.eval]
        l0 = {f"L0 of {name}": values for name, values in l0_series(config, evals).items()}
        latest = {name: value for one in evals for name, value in one.items()}
        names = without_matrices(latest, matrix_rows(config, latest))
        others = {name: np.array([one.get(name, math.nan) for one in evals]) for name in names}
        return steps_of(run.records.eval), l0 | others

    return _overlaid("evaluations", "Evaluations", "metric", "Metric", found, series)


def _overlaid(
    name: str,
    title: str,
    y: str,
    choose: str,
    found: SideBySide,
    series: Callable[[RunSummary, RunConfig], tuple[np.ndarray, Mapping[str, np.ndarray]]],
    positive: bool = False,
) -> Chart | None:
    """One line a run, of what the reader chooses; None where no run has anything to draw."""
    lines: dict[str, list[Line]] = {}
    for label, run, config in zip(found.labels, found.runs, found.configs, strict=True):
        steps, own = series(run, config)
        for line in drawable(own, steps, positive):
            lines.setdefault(line.name, []).append(Line(label, line.x, line.y))
    choices = [Choice(key, same, positive or is_wide(same)) for key, same in lines.items() if _is_curve(same)]
    if not choices:
        return None
    return Chart(f"chart-{name}", title, "", STEP, y, choices[:MOST_CURVES], choose)


def _is_curve(lines: Sequence[Line]) -> bool:
    """Whether any has two points; one point is in the table already."""
    return any(np.isfinite(line.y).sum() > 1 for line in lines)


def _front(found: SideBySide) -> TradeOff | None:
    outcomes = [last_outcome(run.path) for run in found.runs]
    sites = [
        [matrix.name for matrix in matrix_rows(config, outcome.metrics)]
        for config, outcome in zip(found.configs, outcomes, strict=True)
    ]
    return trade_off(found.configs, sites, outcomes)


def _front_chart(found: SideBySide, front: TradeOff | None) -> Chart | None:
    if front is None:
        return None
    named = [found.labels[i] + (" (front)" if best else "") for i, best in zip(front.runs, front.front, strict=True)]
    lines = [Line(name, np.array([x]), np.array([y])) for name, (x, y) in zip(named, front.points, strict=True)]
    caption = (
        "Good: low and to the left. No other run is as good on both axes and better on one than those on the front."
    )
    title = "Sparsity against reconstruction"
    choice = Choice("front", lines, is_wide(lines))
    return Chart("chart-front", title, caption, front.l0, f"{front.recon}, {front.kind}", [choice], dots=True)
