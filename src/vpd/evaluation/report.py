"""The report of a run: one HTML file that opens anywhere, made from what lies in the run directory."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from vpd.errors import RunError
from vpd.evaluation.charts import Chart, charts_data
from vpd.evaluation.page import Picture, picture, render_page
from vpd.evaluation.run_charts import cross_entropy_chart, l0_chart, loss_chart, spectrum_chart
from vpd.evaluation.spectrum import newest_spectrum

if TYPE_CHECKING:
    from vpd.evaluation.diagnosis import Diagnosis
    from vpd.evaluation.language_report import LanguageTables

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Record: TypeAlias = dict[str, Json]

ALL_SITES = "all sites"
MAX_PIVOT_SITES = 4  # more columns would not fit the page


class Records(NamedTuple):
    """The lines of `metrics.jsonl` by kind, in order of the step."""

    train: list[Record]
    eval: list[Record]


def read_records(run_dir: Path) -> Records:
    """Reads the training and evaluation records of a run.

    A last line that is cut short is left out: the run may be writing it. A resumed run repeats the steps
    after its checkpoint, and the later record of a step counts. Other kinds are left to their readers.

    Raises:
        RunError: without a run directory or `metrics.jsonl` in it, or when a line is no JSON object.
    """
    path = run_dir / "metrics.jsonl"
    if not run_dir.is_dir():
        raise RunError(f"There is no run directory {run_dir}: give the folder that `vpd train` printed.")
    if not path.is_file():
        raise RunError(
            f"{run_dir} has no metrics.jsonl, so it is no run or has not logged yet: give the folder that "
            "`vpd train` printed, or wait for its first log line."
        )
    by_kind: dict[str, dict[int, Record]] = {"train": {}, "eval": {}}
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None and line.strip() and number < len(lines):
            raise RunError(f"{path} line {number} is no JSON object: mend or delete that line.")
        kind, step = (record.get("kind"), record.get("step")) if record else (None, None)
        if record and isinstance(kind, str) and kind in by_kind and isinstance(step, int):
            by_kind[kind][step] = record
    train, evals = ([steps[s] for s in sorted(steps)] for steps in (by_kind["train"], by_kind["eval"]))
    return Records(train, evals)


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run directory and returns its path; a reader never meets half a file.

    Raises:
        RunError: without a run directory or `metrics.jsonl` in it, or when a file of the run is
            broken.
    """
    page = _render(run_dir, read_records(run_dir))
    path = run_dir / "report.html"
    unfinished = run_dir / f".report.html.{os.getpid()}"
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Cell:
    """One judged measure at one site."""

    measure: str
    site: str
    value: str
    expected: str
    ok: bool | None

    @property
    def word(self) -> str:
        return {True: "✓ holds", False: "✗ fails", None: ""}[self.ok]

    @property
    def tone(self) -> str:
        return {True: "good", False: "bad", None: ""}[self.ok]


class _Pivot(NamedTuple):
    sites: list[str]
    rows: list[tuple[str, list[_Cell | None]]]


class _Headline(NamedTuple):
    text: str
    tone: str


class _Metric(NamedTuple):
    name: str
    value: float
    text: str
    interval: str
    step: int


def _render(run_dir: Path, records: Records) -> str:
    run = _read_object(run_dir / "run.json")
    status = _text(run.get("status") or "status unknown")
    verdict_step, verdict = _latest_verdict(records.eval)
    figures_step, figures = _figures(run_dir)
    language = _language(run_dir, run, records.eval)
    diagnoses = _diagnoses(run_dir, records.eval)
    config = run_dir / "config.yaml"
    steps = [step for record in (*records.train, *records.eval) if isinstance(step := record["step"], int)]
    return render_page(
        "report.html.jinja",
        name=_text(run.get("run_id") or run_dir.resolve().name),
        status=status,
        step=max(steps, default=None),
        headline=_headline(status, verdict, "Finished" if language else None),
        verdict=verdict,
        verdict_step=verdict_step,
        pivot=_pivot(verdict),
        diagnoses=diagnoses,
        language=language,
        shown=_shown,
        figures=figures,
        figures_step=figures_step,
        metrics=(metrics := _latest_metrics(records.eval)),
        intervals=any(metric.interval for metric in metrics),
        charts=(charts := _charts(run_dir, records, language)),
        charts_data=charts_data(charts),
        facts=_facts(run, records.train),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def _language(run_dir: Path, run: Record, evals: Sequence[Record]) -> "LanguageTables | None":
    """The tables of a language model; other targets have none."""
    config = run_dir / "config.yaml"
    if run.get("target") != "lm" or not config.is_file():
        return None
    from vpd.config import read_run_file  # what a toy's report does without is slow to import
    from vpd.evaluation.language_report import language_tables

    source = run.get("target_source")
    quantised = isinstance(source, dict) and source.get("quantised") is True
    metrics = [{name: _number(value) for name, value in _metrics(record).items()} for record in evals]
    return language_tables(read_run_file(config).config, metrics, run_dir, quantised)


def _diagnoses(run_dir: Path, evals: Sequence[Record]) -> "list[Diagnosis] | None":
    """What the newest vital signs show; None where none were taken, as in older runs."""
    config = run_dir / "config.yaml"
    if not config.is_file() or not any(isinstance(record.get("health"), dict) for record in evals):
        return None
    from vpd.config import read_run_file  # what a report does without is slow to import
    from vpd.evaluation.course import diagnose_run

    return diagnose_run(read_run_file(config).config, evals)


def _shown(value: float | int | None) -> str:
    """A number of a table; none where there is nothing to show."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.4g}"


def _headline(status: str, verdict: Sequence[_Cell], finished: str | None = None) -> _Headline:
    """The answer first: is the network taken apart? Only a finished run is called solved or not.

    Args:
        status: of the run.
        verdict: its rows.
        finished: what is said instead of that, where no one knows the solution.
    """
    judged = [cell for cell in verdict if cell.ok is not None]
    failed = sum(cell.ok is False for cell in judged)
    if not judged:
        nothing = "no measure has an expected value" if verdict else "no evaluation has judged it yet"
        return _Headline(f"{status.capitalize()}: {nothing}", "")
    of = f"{failed} of {len(judged)} measures {'fails' if failed == 1 else 'fail'}"
    if status != "finished":
        lead = {"running": "Still running", "stopped": "Stopped before the end"}.get(status, status.capitalize())
        return _Headline(f"{lead}: {of if failed else 'every measure holds'} so far", "")
    if failed:
        return _Headline(f"{finished or 'Not solved'}: {of}", "bad")
    return _Headline(f"{finished or 'Solved'}: every measure holds", "good")


def _latest_verdict(evals: Sequence[Record]) -> tuple[int | None, list[_Cell]]:
    for record in reversed(evals):
        rows, step = record.get("verdict"), record["step"]
        if isinstance(rows, list) and rows and isinstance(step, int):
            return step, [_cell(row) for row in rows if isinstance(row, dict)]
    return None, []


def _cell(row: Record) -> _Cell:
    ok = row.get("ok")
    return _Cell(
        measure=_text(row.get("measure")),
        site=_text(row.get("site") or ALL_SITES),
        value=_text(row.get("value")),
        expected=_text(row.get("expected")) if row.get("expected") is not None else "",
        ok=ok if isinstance(ok, bool) else None,
    )


def _pivot(verdict: Sequence[_Cell]) -> _Pivot | None:
    """Measures by sites, or None where that is too wide for a page or names a cell twice."""
    sites = sorted(dict.fromkeys(cell.site for cell in verdict), key=lambda site: site != ALL_SITES)
    cells = {(cell.measure, cell.site): cell for cell in verdict}
    if not verdict or len(sites) > MAX_PIVOT_SITES or len(cells) < len(verdict):
        return None
    measures = dict.fromkeys(cell.measure for cell in verdict)
    return _Pivot(sites, [(measure, [cells.get((measure, site)) for site in sites]) for measure in measures])


def _latest_metrics(evals: Sequence[Record]) -> list[_Metric]:
    """The last value of every metric: slow ones are not in every evaluation."""
    latest: dict[str, _Metric] = {}
    for record in evals:
        for name, value in _metrics(record).items():
            step = int(_number(record["step"]))
            latest[name] = _Metric(name, _number(value), _text(value), _interval(record, name), step)
    return list(latest.values())


def _interval(record: Record, name: str) -> str:
    """What resampled batches give, or nothing of a metric that is no mean over them."""
    intervals = record.get("intervals")
    found = intervals.get(name) if isinstance(intervals, dict) else None
    return f"{_text(found[0])} – {_text(found[1])}" if isinstance(found, list) and len(found) == 2 else ""


def _figures(run_dir: Path) -> tuple[int | None, list[Picture]]:
    """The pictures of the newest evaluation that drew some, in the order of their captions."""
    drawn = {
        int(folder.name): folder
        for folder in (run_dir / "figures").glob("*")
        if folder.name.isdecimal() and any(folder.glob("*.png"))
    }
    if not drawn:
        return None, []
    folder = drawn[max(drawn)]
    captions = _read_object(folder / "captions.json")
    order = {stem: i for i, stem in enumerate(captions)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    return max(drawn), [_picture(path.stem, path.read_bytes(), captions.get(path.stem)) for path in paths]


def _picture(stem: str, png: bytes, words: Json) -> Picture:
    said = words if isinstance(words, dict) else {}
    return picture(stem, png, _text(said.get("title") or stem.replace("_", " ")), _text(said.get("caption") or ""))


def _charts(run_dir: Path, records: Records, language: "LanguageTables | None") -> list[Chart]:
    """What a reader would hover over or zoom into, where there is something to draw."""
    at, train = _steps(records.eval), _steps(records.train)
    several = len(records.eval) > 1
    evals = [_metrics(record) for record in records.eval]
    sparsities = _series(evals, "CI_L0/") if language is None else language.l0
    spectrum = newest_spectrum(run_dir / "figures")
    charts = (
        loss_chart(train, _series(records.train, "loss/")),
        l0_chart(at, sparsities) if several else None,
        cross_entropy_chart(at, language.ce) if several and language is not None else None,
        spectrum_chart(spectrum[1]) if spectrum is not None else None,
    )
    return [chart for chart in charts if chart is not None]


def _steps(records: Sequence[Record]) -> Float[np.ndarray, " _n"]:
    return np.array([_number(record["step"]) for record in records])


def _series(records: Sequence[Record], prefix: str) -> dict[str, Float[np.ndarray, " _n"]]:
    """One array a name after the prefix, NaN where a record lacks it."""
    names = dict.fromkeys(name for record in records for name in record if name.startswith(prefix))
    return {name.removeprefix(prefix): np.array([_number(record.get(name)) for record in records]) for name in names}


def _metrics(record: Record) -> Record:
    metrics = record.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _facts(run: Record, train: Sequence[Record]) -> list[tuple[str, str]]:
    """What the run recorded about itself, with the usual keys first."""
    usual = ("started", "seconds", "devices", "seed", "revision", "schema_version", "versions")
    keys = [key for key in usual if key in run] + [key for key in run if key not in usual]
    facts: list[tuple[str, str]] = []
    for key in keys:
        value = run[key]
        if key.startswith("seconds") and isinstance(value, int | float):
            facts.append((key.replace("seconds", "duration", 1).replace("_", " "), _duration(float(value))))
        elif key not in ("run_id", "status"):  # the headline has them
            facts.append((key.replace("_", " "), _text(value)))
    if "seconds" not in run and train and not math.isnan(time := _number(train[-1].get("time"))):
        facts.append(("duration at the last log line", _duration(time)))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _text(value: Json) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return f"{value:.4g}"
        case str():
            return value
        case list():
            return ", ".join(map(_text, value))
        case dict():
            return ", ".join(f"{key} {_text(item)}" for key, item in value.items())


def _parse(text: bytes) -> Record | None:
    """The JSON object in the text, or None where it is none."""
    try:
        value: Json = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_object(path: Path) -> Record:
    """A JSON file that may be missing, but not broken."""
    if not path.is_file():
        return {}
    value = _parse(path.read_bytes())
    if value is None:
        raise RunError(f"{path} is no JSON object: restore it, or delete it to do without.")
    return value
