"""``vpd compare``: runs of one target side by side, as tables, figures, one JSON file and one page."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import typer
from matplotlib.figure import Figure
from rich.table import Table

from vpd.analysis.comparison import Comparison, agreement_summary, compare_runs, pair_summary, target_hash
from vpd.analysis.outcomes import Outcome, TradeOff, last_outcome, trade_off
from vpd.analysis.run_labels import place_beside
from vpd.commands.tables import number, results_console
from vpd.errors import RunError
from vpd.evaluation import comparison_figures as drawn
from vpd.evaluation.agreement import MEASURES
from vpd.evaluation.figures import png
from vpd.evaluation.page import picture, render_page
from vpd.run_directory import finite

RESULT = "compare.json"
_WORDS = {"rank_one": "rank-one matrices", "V": "V, reads", "U": "U, writes"}


class Cells(NamedTuple):
    """A table as text: the words at its head, and rows that begin with their name."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Found:
    """Everything that a comparison tells."""

    comparison: Comparison
    outcomes: Sequence[Outcome]
    trade_off: TradeOff | None

    @property
    def lowest(self) -> tuple[float, str, str, str] | None:
        """The smallest covering rank-one agreement, with its site and two runs."""
        labels = self.comparison.labels
        every = [
            (found["rank_one"].covering, site, labels[i], labels[j])
            for site, at in self.comparison.sites.items()
            for (i, j), found in at.pairs.items()
        ]
        return min((one for one in every if not math.isnan(one[0])), default=None)


def compare_command(paths: Sequence[Path], folder: Path | None, as_json: bool) -> None:
    """Compare runs, write ``compare.json``, the figures and ``compare.html``, and print what was found."""
    earlier = [path for path in paths if (path / RESULT).is_file()]
    for path in earlier:
        typer.echo(f"vpd: {path} is an earlier comparison, skipped", err=True)
    paths = [path for path in paths if path not in earlier]
    place = folder or default_folder(paths)
    _refuse_other_content(place)
    comparison = compare_runs(paths)
    outcomes = [last_outcome(run.path) for run in comparison.runs]
    runs = comparison.runs
    front = trade_off([run.config for run in runs], [run.sites for run in runs], outcomes)
    found = Found(comparison, outcomes, front)
    result = finite(as_values(found))
    _write(place, found, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
        return
    for title, cells in ((headline(found), agreement_cells(comparison)), ("Runs", run_cells(found))):
        _print(title, cells)
    for note in notes_on(found):
        typer.echo(note)
    typer.echo(f"page: {place / 'compare.html'}")
    typer.echo(str(place))


def default_folder(paths: Sequence[Path]) -> Path:
    """Beside the first run, named after which runs are compared: the same ones write the same folder."""
    if not paths:
        raise RunError("a comparison needs at least two run directories; give for example runs/a runs/b")
    return place_beside(paths, "compare")


def as_values(found: Found) -> dict[str, object]:
    """The whole comparison as plain values."""
    comparison = found.comparison
    lowest = found.lowest
    overall = pair_summary(comparison.overall())
    runs = zip(comparison.labels, comparison.runs, found.outcomes, comparison.with_others(), strict=True)
    return {
        "schema_version": 1,
        "target": target_hash(comparison.runs[0]),
        "live": comparison.criterion,
        "agreement": overall | {"minimum_over_sites": lowest[0] if lowest else None},
        "runs": [
            {
                "label": label,
                "path": str(run.path),
                "seed": run.config.pd.seed,
                "step": run.step,
                "status": run.status,
                "solved": outcome.solved,
                "median_agreement_with_others": others,
                "evaluated_at": outcome.step,
                "metrics": dict(outcome.metrics),
            }
            for label, run, outcome, others in runs
        ],
        "sites": agreement_summary(comparison),
        "sites_of_one_run": list(comparison.alone),
        "trade_off": _trade_off_values(found),
    }


def _trade_off_values(found: Found) -> dict[str, object] | None:
    front = found.trade_off
    if front is None:
        return None
    points = zip(front.runs, front.points.tolist(), front.front.tolist(), strict=True)
    labels = found.comparison.labels
    return {
        "l0": front.l0,
        "recon": front.recon,
        "kind": front.kind,
        "points": [{"run": labels[i], "l0": x, "recon": y, "front": best} for i, (x, y), best in points],
    }


def headline(found: Found) -> str:
    """The answer in one line."""
    n, lowest = len(found.comparison.runs), found.lowest
    if lowest is None:
        return f"{n} runs with nothing live to compare"
    value, site, a, b = lowest
    if value >= drawn.AGREEING:
        return f"{n} runs agree: {drawn.digits(value, 4)} or better at every site, for every pair"
    return f"{n} runs do not all agree: down to {drawn.digits(value, 4)} at {site}, between {a} and {b}"


def notes_on(found: Found) -> list[str]:
    """What a reader has to know besides the tables."""
    comparison, front = found.comparison, found.trade_off
    notes = [
        f"{label} is {run.status} and was read at step {run.step}"
        for label, run in zip(comparison.labels, comparison.runs, strict=True)
        if run.status != "finished"
    ]
    if comparison.alone:
        notes.append(f"decomposed in one run only, left out: {', '.join(comparison.alone)}")
    if front is None:
        notes.append("no front of sparsity against reconstruction: no two runs evaluated CI_L0 and the same recon loss")
    elif len(front.runs) < len(comparison.runs):
        absent = [label for i, label in enumerate(comparison.labels) if i not in front.runs]
        notes.append(f"left out of the front, without CI_L0 or {front.recon}: {', '.join(absent)}")
    return notes


def agreement_cells(comparison: Comparison) -> Cells:
    """Minimum and mean over pairs, for every site and measure."""
    rows: list[list[str]] = []
    for name, site in comparison.sites.items():
        live = " ".join("-" if n is None else str(n) for n in site.live)
        for measure in MEASURES:
            kinds = [pair_summary(site.matrix(measure, covering)) for covering in (True, False)]
            values = [kind[what] for kind in kinds for what in ("minimum", "mean")]
            rows.append([name, _WORDS[measure], *map(_cell, values), live if measure == "rank_one" else ""])
    return Cells(["site", "of", "covering: min", "mean", "matched: min", "mean", "live in each run"], rows)


def run_cells(found: Found) -> Cells:
    """Each run with its agreement with the others, its verdict and its place on the front."""
    comparison, front = found.comparison, found.trade_off
    rows: list[list[str]] = []
    others = comparison.with_others()
    for i, (label, run, outcome) in enumerate(zip(comparison.labels, comparison.runs, found.outcomes, strict=True)):
        verdict = {True: "solved", False: "not solved", None: "-"}[outcome.solved]
        place = front.runs.index(i) if front is not None and i in front.runs else None
        cells = ["-", "-", "-"]
        if front is not None and place is not None:
            x, y = front.points[place].tolist()
            cells = [f"{x:.4g}", f"{y:.3g}", "yes" if front.front[place] else "no"]
        rows.append([label, str(run.config.pd.seed), str(run.step), _cell(others[i]), verdict, *cells])
    recon = front.recon.removeprefix("loss/") if front else "recon"
    return Cells(["run", "seed", "step", "median agreement", "verdict", "L0", recon, "on the front"], rows)


def metric_cells(found: Found) -> Cells:
    """Every metric of the last evaluations, runs across."""
    names = list(dict.fromkeys(name for outcome in found.outcomes for name in outcome.metrics))
    rows = [[name, *(_metric(outcome.metrics.get(name)) for outcome in found.outcomes)] for name in names]
    return Cells(["metric", *found.comparison.labels], rows)


def figures_of(found: Found) -> dict[str, Figure]:
    """The figures by name."""
    comparison, front = found.comparison, found.trade_off
    sites = comparison.sites
    pictures = {
        "agreement": drawn.agreement({s: at.matrix("rank_one") for s, at in sites.items()}, comparison.labels),
        "similarity_curves": drawn.similarity_curves(
            {s: {pair: agreed["rank_one"].curve for pair, agreed in at.pairs.items()} for s, at in sites.items()},
            comparison.labels,
        ),
    }
    if front is not None:
        labels = [comparison.labels[i] for i in front.runs]
        recon = f"{front.recon.removeprefix('loss/')}\n{front.kind}"
        pictures["pareto"] = drawn.pareto(front.points, front.front, labels, front.l0, recon)
    return pictures


def _page(found: Found, images: dict[str, bytes]) -> str:
    lowest, comparison = found.lowest, found.comparison
    good = lowest is not None and lowest[0] >= drawn.AGREEING
    return render_page(
        "comparison.html.jinja",
        headline=headline(found),
        tone="good" if good else "bad" if lowest else "",
        subtitle=", ".join(str(run.path) for run in comparison.runs),
        criterion=comparison.criterion,
        agreement=agreement_cells(comparison),
        notes=notes_on(found),
        figures=[
            picture(n, image, drawn.CAPTIONS[n]["title"], drawn.CAPTIONS[n]["caption"]) for n, image in images.items()
        ],
        runs=run_cells(found),
        metrics=metric_cells(found),
    )


def _write(folder: Path, found: Found, result: str) -> None:
    """Replace a comparison as a whole."""
    images = {name: png(figure) for name, figure in figures_of(found).items()}
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        for name, image in images.items():
            (draft / f"{name}.png").write_bytes(image)
        (draft / "compare.html").write_text(_page(found, images), encoding="utf-8")
        (draft / RESULT).write_text(result, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_other_content(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and ((folder / RESULT).is_file() or not any(folder.iterdir()))):
        return
    raise RunError(f"{folder} exists and holds no comparison, so it is left alone; give another folder with -o")


def _print(title: str, cells: Cells) -> None:
    table = Table(title=title, title_justify="left")
    for i, word in enumerate(cells.head):
        table.add_column(word, justify="left" if i == 0 else "right", overflow="fold")
    for row in cells.rows:
        table.add_row(*row)
    results_console().print(table)


def _cell(value: object) -> str:
    return drawn.digits(value, 4) if isinstance(value, float) and not math.isnan(value) else "-"


def _metric(value: float | None) -> str:
    if value is None:
        return "-"
    return number(int(value)) if value == int(value) else f"{value:.4g}"
