"""What a report says of a run before anything else: its verdict, what is wrong with it, its last metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vpd.evaluation.run_records import Record, Records, metrics_of, number_of, read_object, read_records, words_of

if TYPE_CHECKING:
    from vpd.evaluation.diagnosis import Diagnosis

ALL_SITES = "all sites"


@dataclass(frozen=True)
class Cell:
    """One judged measure at one site."""

    measure: str
    site: str
    value: str
    expected: str
    ok: bool | None

    @property
    def word(self) -> str:
        """Whether it holds, in words; nothing where nothing is expected."""
        return {True: "✓ holds", False: "✗ fails", None: ""}[self.ok]

    @property
    def tone(self) -> str:
        """``good``, ``bad`` or nothing, for its colour."""
        return {True: "good", False: "bad", None: ""}[self.ok]


class Headline(NamedTuple):
    """The answer, and ``good``, ``bad`` or nothing for its colour."""

    text: str
    tone: str


class Metric(NamedTuple):
    """The last value of a metric, as a number and in words, its interval, and the step of its evaluation."""

    name: str
    value: float
    text: str
    interval: str
    step: int


@dataclass(frozen=True)
class RunSummary:
    """A run as its directory tells it.

    Attributes:
        path: the run directory.
        name: of the run.
        status: as ``run.json`` has it.
        facts: all of ``run.json``.
        records: its training and evaluation records.
        headline: the verdict in a sentence.
        verdict_step: of the evaluation that gave it.
        verdict: its rows.
        diagnoses: what the newest vital signs show; None where none were taken.
        metrics: the last value of every metric.
    """

    path: Path
    name: str
    status: str
    facts: Record
    records: Records
    headline: Headline
    verdict_step: int | None
    verdict: list[Cell]
    diagnoses: "list[Diagnosis] | None"
    metrics: list[Metric]

    @property
    def step(self) -> int | None:
        """The last step of which there is a record."""
        every = (*self.records.train, *self.records.eval)
        return max((step for record in every if isinstance(step := record["step"], int)), default=None)


def summarize(run_dir: Path) -> RunSummary:
    """Read a run directory.

    Raises:
        RunError: without a run directory or `metrics.jsonl` in it, or when a file of the run is broken.
    """
    records = read_records(run_dir)
    facts = read_object(run_dir / "run.json")
    status = words_of(facts.get("status") or "status unknown")
    step, verdict = latest_verdict(records.eval)
    # Of a language model no one knows the solution.
    finished = "Finished" if facts.get("target") == "lm" and (run_dir / "config.yaml").is_file() else None
    diagnoses = _diagnoses(run_dir, records.eval)
    return RunSummary(
        path=run_dir,
        name=words_of(facts.get("run_id") or run_dir.resolve().name),
        status=status,
        facts=facts,
        records=records,
        headline=headline(status, verdict, finished, [diagnosis.name for diagnosis in diagnoses or ()]),
        verdict_step=step,
        verdict=verdict,
        diagnoses=diagnoses,
        metrics=latest_metrics(records.eval),
    )


def _diagnoses(run_dir: Path, evals: Sequence[Record]) -> "list[Diagnosis] | None":
    """What the newest vital signs show; None where none were taken, as in older runs."""
    config = run_dir / "config.yaml"
    if not config.is_file() or not any(isinstance(record.get("health"), dict) for record in evals):
        return None
    from vpd.config import read_run_file  # what a report does without is slow to import
    from vpd.evaluation.course import diagnose_run

    return diagnose_run(read_run_file(config).config, evals)


def headline(
    status: str, verdict: Sequence[Cell], finished: str | None = None, diagnosed: Sequence[str] = ()
) -> Headline:
    """The answer first: is the network taken apart? Only a finished run is called solved or not.

    Args:
        status: of the run.
        verdict: its rows.
        finished: what is said instead of that, where no one knows the solution.
        diagnosed: failures by name, which no measure may show.
    """
    judged = [cell for cell in verdict if cell.ok is not None]
    failed = sum(cell.ok is False for cell in judged)
    if not judged:
        nothing = "no measure has an expected value" if verdict else "no evaluation has judged it yet"
        return Headline(f"{status.capitalize()}: {nothing}", "")
    of = f"{failed} of {len(judged)} measures {'fails' if failed == 1 else 'fail'}"
    if status != "finished":
        lead = {"running": "Still running", "stopped": "Stopped before the end"}.get(status, status.capitalize())
        return Headline(f"{lead}: {of if failed else 'every measure holds'} so far", "")
    if failed:
        return Headline(f"{finished or 'Not solved'}: {of}", "bad")
    if diagnosed:
        return Headline(f"{finished or 'Solved'}: every measure holds; diagnosed: {', '.join(diagnosed)}", "")
    return Headline(f"{finished or 'Solved'}: every measure holds", "good")


def latest_verdict(evals: Sequence[Record]) -> tuple[int | None, list[Cell]]:
    """The newest verdict, and the step of it; None and no rows where there is none."""
    for record in reversed(evals):
        rows, step = record.get("verdict"), record["step"]
        if isinstance(rows, list) and rows and isinstance(step, int):
            return step, [_cell(row) for row in rows if isinstance(row, dict)]
    return None, []


def _cell(row: Record) -> Cell:
    ok = row.get("ok")
    return Cell(
        measure=words_of(row.get("measure")),
        site=words_of(row.get("site") or ALL_SITES),
        value=words_of(row.get("value")),
        expected=words_of(row.get("expected")) if row.get("expected") is not None else "",
        ok=ok if isinstance(ok, bool) else None,
    )


def latest_metrics(evals: Sequence[Record]) -> list[Metric]:
    """The last value of every metric: slow ones are not in every evaluation."""
    latest: dict[str, Metric] = {}
    for record in evals:
        for name, value in metrics_of(record).items():
            step = int(number_of(record["step"]))
            latest[name] = Metric(name, number_of(value), words_of(value), _interval(record, name), step)
    return list(latest.values())


def _interval(record: Record, name: str) -> str:
    """What resampled batches give, or nothing of a metric that is no mean over them."""
    intervals = record.get("intervals")
    found = intervals.get(name) if isinstance(intervals, dict) else None
    return f"{words_of(found[0])} – {words_of(found[1])}" if isinstance(found, list) and len(found) == 2 else ""
