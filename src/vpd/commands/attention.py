"""``vpd attention``: a run's attention through its subcomponents, as tables, figures and one page."""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.table import Table

from vpd.analysis.artefacts import artefact_path, new_artefact
from vpd.analysis.attention import figures as drawn
from vpd.analysis.attention.interactions import Pairs
from vpd.analysis.attention.layers import chosen_layers
from vpd.analysis.attention.scores import Masking
from vpd.analysis.attention.study import (
    LayerStudy,
    Row,
    Study,
    overlap_rows,
    pair_rows,
    prompt_rows,
    span_rows,
    study_attention,
)
from vpd.analysis.prompts import context_length, read_prompt
from vpd.analysis.run import Run, open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.evaluation.figures import png
from vpd.evaluation.page import picture, render_page
from vpd.run_directory import finite

KIND, SCHEMA = "attention", 1
LONGEST = 64  # offsets
TITLES = {
    "queries_keys": "Query and key subcomponents, static",
    "values_outputs": "Value and output subcomponents, static",
    "prompt": "Pairs that shape the attention on the prompt",
    "spans": "Heads that subcomponents span",
    "overlap": "Overlap of heads",
}
SHOWN = ("queries_keys", "values_outputs", "prompt")  # in the terminal


def attention_command(
    path: Path,
    layer: str | None,
    prompt: str | None,
    tokens: str | None,
    masking: str,
    top: int,
    batches: int,
    name: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write ``runs/<id>/attention/<name>/`` and print its tables, or one JSON object."""
    if masking not in ("ci", "target"):
        raise RunError(f"--masking {masking!r} is neither ci nor target; write one of them")
    kind: Masking = "ci" if masking == "ci" else "target"
    place = artefact_path(path, KIND, name, force)
    run = open_run(path)
    layers = chosen_layers(run, layer)
    given = None if prompt is None and tokens is None else read_prompt(run, prompt, tokens)
    longest = min(context_length(run) or LONGEST, LONGEST)
    study = study_attention(run, layers, batches, longest, None if given is None else given.batch, kind, quiet)
    tables = tables_of(study, top)
    ids, words = (None, None) if given is None else (given.given["tokens"], given.words)
    facts = {"layers": [own.path for own in layers], "positions": study.typical.positions, "tokens": ids}
    with new_artefact(place, SCHEMA, run.origin, facts | {"words": words, "masking": kind}) as folder:
        _write(folder, run, study, tables, words or [])
    if as_json:
        typer.echo(json.dumps(finite({"run": str(run.path), "step": run.step, "path": str(place), **facts, **tables})))
        return
    for key in SHOWN:
        if tables[key]:
            _print(TITLES[key], tables[key])
    typer.echo(f"page: {place / 'attention.html'}")
    typer.echo(str(place))


def tables_of(study: Study, top: int) -> dict[str, list[Row]]:
    """Every table, by the stem of its file."""
    return {
        "queries_keys": pair_rows(study, top, _queries_keys, ("q", "k")),
        "values_outputs": pair_rows(study, top, _values_outputs, ("v", "o")),
        "prompt": prompt_rows(study, top),
        "spans": span_rows(study),
        "overlap": overlap_rows(study),
    }


def _queries_keys(study: LayerStudy) -> Pairs | None:
    return study.queries_keys


def _values_outputs(study: LayerStudy) -> Pairs | None:
    return study.values_outputs


def figures_of(study: Study, words: Sequence[str]) -> Iterator[tuple[str, str, Figure]]:
    """File stem, kind of caption, and figure."""
    for scores in study.prompt:
        if not (scores.queries.labels and scores.keys.labels):
            continue  # the importances keep nothing of it
        yield f"prompt-{scores.layer.path}", "prompt", drawn.prompt_maps(scores, words, 3)
    for own in study.layers:
        path = own.layer.path
        if own.queries_keys is not None:
            pairs = own.queries_keys
            if len(pairs.offsets) > 1:
                yield f"offsets-{path}", "offsets", drawn.offset_lines(path, pairs)
            title = "Queries and keys at their strongest offset"
            yield f"pairs-{path}", "pairs", drawn.pair_map(path, pairs, ("query", "key"), title, "score")
        if own.values_outputs is not None:
            title = "Values that outputs read"
            words_of_ends = ("value", "output")
            yield f"values-{path}", "values", drawn.pair_map(path, own.values_outputs, words_of_ends, title, "length")
        if own.fractions and own.layer.heads.n_heads > 1:
            yield f"spans-{path}", "spans", drawn.span_bars(path, own.order, own.fractions)
    if len(study.spaces.names) > 1 and study.chance < 1:  # heads as wide as the stream share all of it
        yield "overlap", "overlap", drawn.overlap_maps(study.spaces.names, study.overlap, study.chance)


def _write(folder: Path, run: Run, study: Study, tables: dict[str, list[Row]], words: Sequence[str]) -> None:
    for stem, rows in tables.items():
        if rows:
            (folder / f"{stem}.csv").write_text(as_csv(rows), encoding="utf-8")
    np.savez_compressed(folder / "interactions.npz", allow_pickle=False, **_arrays(study))
    pictures = []
    for stem, kind, figure in figures_of(study, words):
        image = png(figure)
        (folder / f"{stem}.png").write_bytes(image)
        pictures.append(picture(stem, image, stem, drawn.CAPTIONS[kind]))
    shown = [(TITLES[key], _cells(rows)) for key, rows in tables.items() if rows and key in SHOWN]
    page = render_page(
        "attention.html.jinja",
        headline=f"Attention of {run.path.resolve().name}, step {run.step}",
        subtitle=_subtitle(study.layers, study.typical.positions, words),
        tables=shown,
        figures=pictures,
    )
    (folder / "attention.html").write_text(page, encoding="utf-8")


def _subtitle(layers: Sequence[LayerStudy], positions: int, words: Sequence[str]) -> str:
    paths = ", ".join(own.layer.path for own in layers)
    said = f"Layers {paths}; typical activations over {positions:,} positions."
    return f"{said} Prompt: {' '.join(words)}" if words else said


def _arrays(study: Study) -> dict[str, np.ndarray]:
    """All interactions: ``<layer>/{qk,vo}/{first,second,offsets,interaction,typical}``."""
    found: dict[str, np.ndarray] = {}
    for own in study.layers:
        for word, pairs in (("qk", own.queries_keys), ("vo", own.values_outputs)):
            if pairs is not None:
                arrays = {"first": pairs.first, "second": pairs.second, "offsets": pairs.offsets}
                arrays |= {"interaction": pairs.interaction, "typical": pairs.typical}
                found |= {f"{own.layer.path}/{word}/{key}": np.asarray(value) for key, value in arrays.items()}
    return {key: x.astype(np.float32) if x.dtype == np.float64 else x for key, x in found.items()}


def as_csv(rows: Sequence[Row]) -> str:
    """A table with a line of names."""
    out = StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cells(rows: Sequence[Row]) -> dict[str, object]:
    """A table of the page: the words at its head, which columns are numbers, and its cells."""
    numeric = [isinstance(value, int | float) for value in rows[0].values()]
    return {"head": list(rows[0]), "numeric": numeric, "rows": [[_cell(x) for x in row.values()] for row in rows]}


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _print(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left")
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        # The layer has a column of its own.
        table.add_row(*(_cell(value).removeprefix(f"{row['layer']}.") for value in row.values()))
    results_console().print(table)
