"""What is shown of a harvest: evidence, terminal, pages, trials, and the commands that ask for them."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harvests import copied
from rich.console import Console
from tiny_run import called, one_line

from vpd import RunError
from vpd.analysis.harvest.reading import open_harvest
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.look.evidence import by_density, gather
from vpd.analysis.look.intruders import key_path, make_trials, marked, score_answers, write_trials
from vpd.analysis.look.listing import evenly_ranked, markdown
from vpd.analysis.look.pages import write_pages
from vpd.analysis.look.related import Others
from vpd.analysis.look.terminal import print_evidence
from vpd.analysis.run import Run

Harvested = tuple[Run, Settings]


def test_evidence_is_the_harvest(harvested: Harvested) -> None:
    run, _ = harvested
    found = open_harvest(run.path, "default")
    place = int(by_density(found)[0])
    e = gather(found, place)
    assert e.rank == 1 and e.component.name == str(run.axis.at(place))
    windows = found.windows(place)
    assert [p.ci for p in e.passages] == [w.importances[w.position - w.start] for w in windows]
    assert len(gather(found, place, windows=1).passages) == 2
    assert all(0 < c.jaccard <= 1 and c.name != e.component.name for c in e.correlates)
    if found.has_tokens:
        for passage, window in zip(e.passages, windows, strict=True):
            assert [piece.text for piece in passage.pieces] == [found.vocabulary[int(i)] for i in window.inputs]
            assert sum(piece.here for piece in passage.pieces) == 1
        assert max(abs(piece.activation) for p in e.passages for piece in p.pieces) == 1
        shares = [token.recall for token in e.read_often]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9
    else:
        assert all(passage.inputs and not passage.pieces for passage in e.passages)


def test_terminal(harvested: Harvested) -> None:
    run, _ = harvested
    found = open_harvest(run.path, "default")
    console = Console(record=True, width=140, file=io.StringIO())
    for place in range(len(found.axis)):
        print_evidence(console, gather(found, place), found.threshold)
    text = console.export_text()
    assert all(one.name in text for one in found.components)
    assert "largest activations" in text and "fires together with" in text
    assert ("reads" in text) == found.has_tokens


def test_pages(harvested: Harvested, tmp_path: Path) -> None:
    run, _ = harvested
    found = open_harvest(run.path, "default")
    index = write_pages(tmp_path / "pages", found, Others())
    text = index.read_text()
    fired = [one for one in found.components if one.firing_count]
    pages: dict[str, str] = {}
    for one in fired:
        target, anchor = re.findall(rf'href="([^"#]*)#(c\d+)">{re.escape(one.name)}<', text)[0]
        page = pages.setdefault(target, (index.parent / target).read_text())
        assert f'id="{anchor}"' in page
    for page in (text, *pages.values()):
        for link in re.findall(r'href="([^"#]+)', page):
            assert (index.parent / link).is_file()
        assert "http:" not in page and "https:" not in page and "src=" not in page
    write_pages(tmp_path / "pages", found, Others())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(RunError, match="holds no pages"):
        write_pages(tmp_path / "other", found, Others())
    assert (tmp_path / "other" / "mine").exists()


def test_listing_is_by_rank(harvested: Harvested) -> None:
    run, _ = harvested
    found = open_harvest(run.path, "default")
    chosen = evenly_ranked(found, 3)
    counts = found.firing_counts[chosen]
    assert (counts >= 20).all() and list(counts) == sorted(counts, reverse=True)
    order = by_density(found)
    along = np.cumsum(found.firing_counts[order])
    first = order[: np.searchsorted(along, 0.99 * along[-1]) + 1]  # they make up 99 % of all firings
    able = [i for i in first if found.firing_counts[i] >= 20]
    k = min(3, len(able))
    assert list(chosen) == [able[(2 * i + 1) * len(able) // (2 * k)] for i in range(k)]
    rows = markdown(found, 3).splitlines()[2:]
    assert [f"`{run.axis.at(int(place))}`" in row for place, row in zip(chosen, rows, strict=True)] == [True] * len(
        rows
    )
    assert all(row.count("|") == 7 for row in rows)


def test_trials(harvested_text: Harvested, tmp_path: Path) -> None:
    run, _ = harvested_text
    found = open_harvest(run.path, "default")
    trials = make_trials(found, 12, seed=3)
    assert trials == make_trials(found, 12, seed=3) != make_trials(found, 12, seed=4)
    path = tmp_path / "trials.json"
    write_trials(path, trials)
    with pytest.raises(RunError, match="is there already"):
        write_trials(path, trials)
    shown = json.loads(path.read_text())
    assert not any(site in path.read_text() for site in run.sites)
    for texts, place, owner, other in zip(trials.texts, trials.intruders, trials.owners, trials.others, strict=True):
        assert owner != other
        of = {name: _texts(found, name) for name in (owner, other)}
        assert texts[place] in of[other]
        assert all(text in of[owner] for i, text in enumerate(texts) if i != place)
    with pytest.raises(RunError, match="no answer yet"):
        score_answers(path)
    _answered(path, shown, [*trials.intruders[:9], None, *((i + 1) % 5 for i in trials.intruders[10:])])
    score = score_answers(path)
    assert (score.right, score.answered, score.chance) == (9, 11, 0.2)
    assert score.low < 9 / 11 < score.high and score.p_value < 1e-3
    for bad in (5, -1, "2", True):
        _answered(path, shown, [bad] * 12)
        with pytest.raises(RunError, match="from 0 to 4"):
            score_answers(path)
    _answered(path, shown | {"set": "another"}, [0] * 12)
    with pytest.raises(RunError, match="another set"):
        score_answers(path)
    key_path(path).unlink()
    with pytest.raises(RunError, match="can't be read"):
        score_answers(path)


def _texts(found, name: str) -> set[str]:
    return {marked(found, window) for window in found.windows(found.place(name)) if window.kind == "sampled"}


def _answered(path: Path, shown: dict, answers: list) -> None:
    trials = [trial | {"intruder": answer} for trial, answer in zip(shown["trials"], answers, strict=True)]
    path.write_text(json.dumps(shown | {"trials": trials}))


def test_trials_need_something_to_read(harvested_toy: Harvested) -> None:
    with pytest.raises(RunError, match="without a sequence of tokens"):
        make_trials(open_harvest(harvested_toy[0].path, "default"), 3)


@pytest.fixture
def vpd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable:
    return lambda *arguments: called(monkeypatch, capfd, *arguments)


def test_commands(harvested_toy: Harvested, vpd: Callable, tmp_path: Path) -> None:
    run, _ = harvested_toy
    made = vpd("harvest", run.path, "--positions", 64, "--name", "second", "--threshold", 0.0, "--json", "--quiet")
    assert made.code == 0, made.err
    facts = json.loads(made.out)
    assert facts["positions"] == 64 and Path(facts["harvest"]).is_dir()
    assert facts["densest"][0]["firing_count"] == open_harvest(run.path, "second").firing_counts.max()
    shown = vpd("show", run.path, "linear1:0", "--harvest", "second")
    assert shown.code == 0 and "linear1:0" in shown.out
    page = vpd("show", run.path, "linear1:0", "--harvest", "second", "--html")
    assert "linear1:0" in Path(page.out.strip()).read_text()
    pages = vpd("show", run.path, "--harvest", "second", "-o", tmp_path / "pages")
    assert Path(pages.out.strip()) == tmp_path / "pages" / "index.html"
    table = vpd("show", run.path, "--harvest", "second", "--table", 2)
    assert table.out.startswith("| rank |")
    for arguments, why in (
        (("show", run.path), "several harvest"),
        (("show", run.path, "linear3:0", "--harvest", "second"), "not a decomposed site"),
        (("show", run.path, "linear1:6", "--harvest", "second"), "0 to 5"),
        (("show", run.path, "--harvest", "second", "--intruders", 3), "-o FILE"),
        (("show", run.path, "linear1:0", "--table", 2), "one thing at a time"),
        (("harvest", run.path, "--name", "second", "--quiet"), "is there already"),
        (("harvest", run.path, "--name", "third", "--shard", "4/4"), "0/4"),
        (("show", tmp_path / "none"), "no run directory"),
    ):
        refused = vpd(*arguments)
        assert refused.code == 2 and why in one_line(refused.err), refused.err


def test_a_table_of_all_subcomponents(harvested: Harvested, tmp_path: Path) -> None:
    run = copied(harvested[0], tmp_path)
    for other in (run.path / "harvest").iterdir():
        if other.name != "default":
            shutil.rmtree(other)
    found = open_harvest(run.path, "default")
    table = run.table()
    assert table.source == found.path and len(table) == len(run.axis)
    np.testing.assert_allclose(table.density, found.firing_counts / found.positions)
    rows = list(table)
    assert [f"{row.site}:{row.index}" for row in rows] == [one.name for one in found.components]
    assert set(table.columns()) == {"site", "index", "alive", "density", "mean_ci", "norm"}


def test_a_table_without_a_harvest(tiny_run: Run) -> None:
    table = tiny_run.table()
    assert table.source is None and table.positions == 16_384
    assert ((table.density >= 0) & (table.density <= 1)).all() and (table.norm > 0).all()
    pieces = tiny_run.components("linear1")
    norm = np.linalg.norm(np.outer(pieces.V[:, 2], pieces.U[2]))
    assert table.norm[2] == pytest.approx(norm, rel=1e-5)
    assert "pandas" not in sys.modules
