"""Static pages of a harvest: an index by density, a page for every matrix, a page of one subcomponent."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vpd.analysis.harvest.reading import Harvest
from vpd.analysis.look.evidence import Evidence, by_density, gather
from vpd.analysis.look.related import Others
from vpd.analysis.look.words import visible
from vpd.errors import RunError
from vpd.evaluation.page import render_page
from vpd.run_directory import write_atomically

# Windows of each kind on the pages that hold many subcomponents.
WINDOWS = 4
INDEX = "index.html"
MARK = ".vpd-pages"


@dataclass(frozen=True)
class _Matrix:
    name: str
    size: int
    fired: int
    a_position: float


@dataclass(frozen=True)
class _Row:
    site: str
    index: int
    rank: int
    density: float
    mean_importance: float
    norm: float
    read: str
    expected: str


def write_component_page(path: Path, harvest: Harvest, evidence: Evidence) -> None:
    """One subcomponent with all that is known of it, in one file."""
    facts = _facts(harvest)
    write_atomically(path, render_page("component.html.jinja", e=evidence, visible=visible, **facts))


def write_pages(folder: Path, harvest: Harvest, others: Others) -> Path:
    """The index and the pages of all matrices; a reader never meets half of them.

    Args:
        folder: made anew; one that holds something else than such pages is left alone.
        harvest: a finished one.
        others: attributions and clusters, where there are any.

    Returns:
        The index.

    Raises:
        RunError: a folder that holds something else.
    """
    if folder.exists() and not (folder / MARK).is_file():
        raise RunError(f"{folder} is there already and holds no pages of ours; give another folder with -o")
    draft, before = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _write_all(draft, harvest, others)
        (draft / MARK).touch()
        if folder.exists():
            os.rename(folder, before)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return folder / INDEX


def _write_all(folder: Path, harvest: Harvest, others: Others) -> None:
    harvest.read_ahead()
    facts, firing = _facts(harvest), harvest.firing_counts
    rank = np.empty(len(firing), np.int64)
    rank[by_density(harvest)] = np.arange(1, len(firing) + 1)
    rows: list[_Row] = []
    matrices: list[_Matrix] = []
    for site, C in harvest.axis.sizes.items():
        begin = harvest.axis.starts[site]
        places = begin + np.flatnonzero(firing[begin : begin + C])
        found = [gather(harvest, int(place), int(rank[place]), WINDOWS, others=others) for place in places]
        found.sort(key=lambda e: e.rank)
        matrices.append(_Matrix(site, C, len(found), float(firing[begin : begin + C].sum() / harvest.positions)))
        rows += [_row(e) for e in found]
        if found:
            given = {"site": site, "size": C, "components": found, "visible": visible, "link": link}
            page = render_page("site.html.jinja", **given, **facts)
            (folder / page_name(site)).write_text(page, encoding="utf-8")
    rows.sort(key=lambda row: row.rank)
    given = {"rows": rows, "sites": matrices, "total": len(firing), "link": link}
    (folder / INDEX).write_text(render_page("components.html.jinja", **given, **facts), encoding="utf-8")


def page_name(site: str) -> str:
    """The file of a matrix."""
    return f"site-{re.sub(r'[^A-Za-z0-9._-]', '_', site)}.html"


def link(site: str, index: int | None) -> str:
    """Where a subcomponent, or its matrix, is shown."""
    return quote(page_name(site)) + ("" if index is None else f"#c{index}")


def _row(e: Evidence) -> _Row:
    one = e.component
    read, expected = (
        " ".join(visible(token.text) for token in some[:3]) for some in (e.read_specific, e.expected_specific)
    )
    return _Row(one.site, one.index, e.rank, one.density, one.mean_importance, one.norm, read, expected)


def _facts(harvest: Harvest) -> dict[str, object]:
    return {
        "run": harvest.artefact.origin.run_id,
        "step": harvest.artefact.origin.step,
        "positions": harvest.positions,
        "threshold": harvest.threshold,
        "has_tokens": harvest.has_tokens,
    }
