"""The report answers first, fetches nothing, and stands runs that are unfinished, resumed or hostile."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vpd.errors import RunError
from vpd.evaluation import figures
from vpd.evaluation.report import write_report
from vpd.evaluation.run_records import read_records
from vpd.evaluation.run_summary import Cell
from vpd.evaluation.run_summary import headline as verdict_in_a_sentence

# Names of vocabularies, which nothing fetches.
NAMESPACES = {
    "http://www.w3.org/2000/svg",
    "http://www.w3.org/2000/xmlns/",
    "http://www.w3.org/1999/xhtml",
    "http://www.w3.org/1999/xlink",
    "http://www.w3.org/XML/1998/namespace",
    "http://gionkunz.github.com/chartist-js/ct",
}
SCRIPT = "<script>alert(1)</script>"
MakeRun = Callable[..., Path]


def train(step: int, loss: float = 0.1) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss/total": loss, "loss/Late": None if step < 200 else 1e-3, "time": 61.0}


def evaluation(step: int, *oks: bool | None) -> dict[str, object]:
    verdict = [
        {"measure": f"measure {i}", "site": "linear1", "value": 5, "expected": "5", "ok": ok}
        for i, ok in enumerate(oks)
    ]
    return {"kind": "eval", "step": step, "metrics": {"CI_L0/linear1": 1.0 + step}, "verdict": verdict}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(*records: dict[str, object], tail: str = "", **run: object) -> Path:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
        (tmp_path / "run.json").write_text(json.dumps({"run_id": "tms_5-2", "status": "finished", **run}))
        return tmp_path

    return make


def add_figure(run_dir: Path, step: int, stem: str, title: str = "", caption: str = "") -> None:
    folder = run_dir / "figures" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    figure = figures.ci_histogram({"linear1": np.array([3, 1])}, np.linspace(0, 1, 3))
    (folder / f"{stem}.png").write_bytes(figures.png(figure))
    (folder / "captions.json").write_text(json.dumps({stem: {"title": title, "caption": caption}}))


def page(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def headline(run_dir: Path) -> str:
    found = re.search("<h1>(.*)</h1>", page(run_dir))
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("status", "oks", "expected"),
    [
        ("finished", (True, True, None), "Solved: every measure holds"),
        ("finished", (True, False, False), "Not solved: 2 of 3 measures fail"),
        ("finished", (True, False), "Not solved: 1 of 2 measures fails"),
        ("running", (True, False), "Still running: 1 of 2 measures fails so far"),
        ("running", (True,), "Still running: every measure holds so far"),
        ("stopped", (False,), "Stopped before the end: 1 of 1 measures fails so far"),
        ("finished", (), "Finished: no evaluation has judged it yet"),
        ("finished", (None,), "Finished: no measure has an expected value"),
    ],
)
def test_headline(make_run: MakeRun, status: str, oks: tuple[bool | None, ...], expected: str):
    assert headline(make_run(train(0), evaluation(100, *oks), status=status)) == expected


def test_a_failure_that_no_measure_shows_is_in_the_headline() -> None:
    found = verdict_in_a_sentence("finished", [Cell("recovered", "linear1", "5", "5", True)], None, ["C too small"])
    assert found.text == "Solved: every measure holds; diagnosed: C too small" and not found.tone


def test_sections_come_in_order_and_say_results_in_words(make_run: MakeRun):
    run_dir = make_run(train(0), train(200), evaluation(0, True), evaluation(200, True, False), seed=7)
    (run_dir / "config.yaml").write_text("steps: 200\n")
    add_figure(run_dir, 200, "ci_histogram", "A title", "Good: two peaks")
    html = page(run_dir)
    assert re.findall("<h2>(.*)</h2>", html) == [
        "Verdict", "Charts", "Figures", "Metrics", "Run", "Configuration",
    ]  # fmt: skip
    assert "✓ holds" in html and "✗ fails" in html and "expected 5" in html
    assert html.count("<img ") == 1 and re.findall('class="chart" id="(.*?)"', html) == ["chart-losses", "chart-l0"]
    assert "Good: two peaks" in html and 'alt="A title"' in html


def test_it_fetches_nothing(make_run: MakeRun):
    run_dir = make_run(train(0), evaluation(0, True))
    add_figure(run_dir, 0, "ci_histogram")
    html = page(run_dir)
    addresses = set(re.findall(r"https?://[^\"'`]*", html))
    assert addresses <= NAMESPACES and "default-src 'none'" in html
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', html))


def test_hostile_names_stay_text(make_run: MakeRun):
    record = evaluation(0)
    record["metrics"] = {SCRIPT: 1.0, '"><b>': 2.0}
    record["verdict"] = [{"measure": SCRIPT, "site": SCRIPT, "value": SCRIPT, "expected": SCRIPT, "ok": False}]
    run_dir = make_run(train(0), record, run_id=SCRIPT, versions={SCRIPT: SCRIPT})
    (run_dir / "config.yaml").write_text(f"name: {SCRIPT}\n")
    add_figure(run_dir, 0, "ci_histogram", f'"{SCRIPT}', SCRIPT)
    html = page(run_dir)
    assert SCRIPT not in html and "<b>&" not in html and '"><b>' not in html
    assert html.count("<script>") == 3


def test_a_partial_last_line_is_left_out(make_run: MakeRun):
    run_dir = make_run(train(0), train(100), tail='{"kind": "train", "st')
    assert [record["step"] for record in read_records(run_dir).train] == [0, 100]
    write_report(run_dir)


def test_a_broken_line_in_the_middle_is_named(make_run: MakeRun):
    run_dir = make_run(train(0), tail='{"kind": "tr\n' + json.dumps(train(100)) + "\n")
    with pytest.raises(RunError, match="line 2"):
        read_records(run_dir)


def test_other_kinds_are_ignored_and_a_repeated_step_counts_once(make_run: MakeRun):
    records = read_records(make_run(train(0), train(100, 1.0), {"kind": "note"}, train(50), train(100, 2.0)))
    assert [record["step"] for record in records.train] == [0, 50, 100]
    assert records.train[-1]["loss/total"] == 2.0
    assert records.eval == []


def test_metrics_are_the_latest_of_each(make_run: MakeRun):
    slow = evaluation(100)
    slow["metrics"] = {"slow": 0.25, "bad": float("nan")}
    html = page(make_run(slow, evaluation(200)))
    assert 'data-value="0.25">0.25</td><td class="number" data-value="100"' in html
    assert 'data-value="201.0"' in html and 'data-value="nan"' in html


def test_only_the_newest_figures_show_by_number_not_by_name(make_run: MakeRun):
    run_dir = make_run(train(0))
    add_figure(run_dir, 900, "old", "Old one")
    add_figure(run_dir, 1000, "new", "New one")
    html = page(run_dir)
    assert "New one" in html and "Old one" not in html and "Drawn at step 1,000" in html


def test_many_sites_make_a_long_table(make_run: MakeRun):
    record = evaluation(0)
    rows = [{"measure": "live", "site": f"h.{i}", "value": i, "expected": None, "ok": None} for i in range(9)]
    record["verdict"] = rows
    html = page(make_run(record))
    assert 'type="button">Site</button>' in html and "<td>h.8</td>" in html


def test_measures_of_the_whole_model_come_first(make_run: MakeRun):
    record = evaluation(0, True)
    verdict = record["verdict"]
    assert isinstance(verdict, list)
    record["verdict"] = [*verdict, {"measure": "identity error", "site": None, "value": 0, "expected": "0", "ok": True}]
    assert re.findall('<th scope="col">([^<]*)</th>', page(make_run(record)))[:3] == ["Measure", "all sites", "linear1"]


def test_a_bare_run_is_reported(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    html = page(tmp_path)
    assert tmp_path.name in html and "status unknown" in html


def test_run_facts_are_tolerant(make_run: MakeRun):
    html = page(make_run(train(0), seconds=3725, devices=["cpu:0", "cpu:1"], versions={"jax": "0.8"}, odd=None))
    assert "1 h 2 min" in html and "cpu:0, cpu:1" in html and "jax 0.8" in html
    assert "1 min 1 s" in page(make_run(train(0)))


def test_writing_leaves_one_file_and_replaces_the_old(make_run: MakeRun):
    run_dir = make_run(train(0))
    (run_dir / "report.html").write_text("old")
    before = {path.name for path in run_dir.iterdir()}
    assert page(run_dir) != "old"
    assert {path.name for path in run_dir.iterdir()} == before


@pytest.mark.parametrize("exists", [True, False])
def test_no_run_is_one_sentence_with_the_way_out(tmp_path: Path, exists: bool):
    run_dir = tmp_path if exists else tmp_path / "absent"
    with pytest.raises(RunError, match="vpd train"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


def test_a_broken_run_file_is_named(make_run: MakeRun):
    run_dir = make_run(train(0))
    (run_dir / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"):
        write_report(run_dir)
