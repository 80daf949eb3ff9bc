"""The report of a run: one HTML file that opens anywhere, made from what lies in the run directory."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vpd.evaluation.charts import Chart, charts_data
from vpd.evaluation.page import Picture, picture, render_page
from vpd.evaluation.run_charts import cross_entropy_chart, l0_chart, loss_chart, spectrum_chart
from vpd.evaluation.run_records import (
    Json,
    Record,
    Records,
    metrics_of,
    number_of,
    read_object,
    series_of,
    steps_of,
    words_of,
)
from vpd.evaluation.run_summary import ALL_SITES, Cell, RunSummary, summarize
from vpd.evaluation.spectrum import newest_spectrum
from vpd.run_directory import write_atomically

if TYPE_CHECKING:
    from vpd.evaluation.language_report import LanguageTables

MAX_PIVOT_SITES = 4  # more columns would not fit the page


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run directory and returns its path; a reader never meets half a file.

    Raises:
        RunError: without a run directory or `metrics.jsonl` in it, or when a file of the run is
            broken.
    """
    path = run_dir / "report.html"
    write_atomically(path, _render(summarize(run_dir)))
    return path


class _Pivot(NamedTuple):
    sites: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def _render(summary: RunSummary) -> str:
    run_dir = summary.path
    figures_step, figures = _figures(run_dir)
    language = _language(run_dir, summary.facts, summary.records.eval)
    charts = _charts(run_dir, summary.records, language)
    config = run_dir / "config.yaml"
    return render_page(
        "report.html.jinja",
        run=summary,
        pivot=_pivot(summary.verdict),
        language=language,
        shown=shown,
        figures=figures,
        figures_step=figures_step,
        intervals=any(metric.interval for metric in summary.metrics),
        charts=charts,
        charts_data=charts_data(charts),
        facts=_facts(summary.facts, summary.records.train),
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
    metrics = [{name: number_of(value) for name, value in metrics_of(record).items()} for record in evals]
    return language_tables(read_run_file(config).config, metrics, run_dir, quantised)


def shown(value: float | int | None) -> str:
    """A number of a table; none where there is nothing to show."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.4g}"


def _pivot(verdict: Sequence[Cell]) -> _Pivot | None:
    """Measures by sites, or None where that is too wide for a page or names a cell twice."""
    sites = sorted(dict.fromkeys(cell.site for cell in verdict), key=lambda site: site != ALL_SITES)
    cells = {(cell.measure, cell.site): cell for cell in verdict}
    if not verdict or len(sites) > MAX_PIVOT_SITES or len(cells) < len(verdict):
        return None
    measures = dict.fromkeys(cell.measure for cell in verdict)
    return _Pivot(sites, [(measure, [cells.get((measure, site)) for site in sites]) for measure in measures])


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
    captions = read_object(folder / "captions.json")
    order = {stem: i for i, stem in enumerate(captions)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    return max(drawn), [_picture(path.stem, path.read_bytes(), captions.get(path.stem)) for path in paths]


def _picture(stem: str, png: bytes, words: Json) -> Picture:
    said = words if isinstance(words, dict) else {}
    return picture(
        stem, png, words_of(said.get("title") or stem.replace("_", " ")), words_of(said.get("caption") or "")
    )


def _charts(run_dir: Path, records: Records, language: "LanguageTables | None") -> list[Chart]:
    """What a reader would hover over or zoom into, where there is something to draw."""
    at, train = steps_of(records.eval), steps_of(records.train)
    several = len(records.eval) > 1
    evals = [metrics_of(record) for record in records.eval]
    sparsities = series_of(evals, "CI_L0/") if language is None else language.l0
    spectrum = newest_spectrum(run_dir / "figures")
    charts = (
        loss_chart(train, series_of(records.train, "loss/")),
        l0_chart(at, sparsities) if several else None,
        cross_entropy_chart(at, language.ce) if several and language is not None else None,
        spectrum_chart(spectrum[1]) if spectrum is not None else None,
    )
    return [chart for chart in charts if chart is not None]


def _facts(run: Record, train: Sequence[Record]) -> list[tuple[str, str]]:
    """What the run recorded about itself, with the usual keys first."""
    usual = ("started", "seconds", "devices", "seed", "revision", "schema_version", "versions")
    keys = [key for key in usual if key in run] + [key for key in run if key not in usual]
    facts: list[tuple[str, str]] = []
    for key in keys:
        value = run[key]
        if key.startswith("seconds") and isinstance(value, int | float):
            facts.append((key.replace("seconds", "duration", 1).replace("_", " "), duration(float(value))))
        elif key not in ("run_id", "status"):  # the headline has them
            facts.append((key.replace("_", " "), words_of(value)))
    if "seconds" not in run and train and not math.isnan(time := number_of(train[-1].get("time"))):
        facts.append(("duration at the last log line", duration(time)))
    return facts


def duration(seconds: float) -> str:
    """A time that a person can read."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
