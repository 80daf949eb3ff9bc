"""Several runs on one page, and an evaluation of named metrics."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import Vpd, one_line

from vpd.run_directory import RunDirectory


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Path:
    """The same run under other values, with another loss and without a verdict."""
    path = tmp_path / "another"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoints"))
    directory = RunDirectory(path)
    directory.config.write_text(re.sub(r"\bseed: 0\b", "seed: 7", directory.config.read_text()))
    directory.update_facts(status="stopped", run_id="another")
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    for line in lines:
        line |= {"loss/total": 0.5} if line["kind"] == "train" else {"verdict": []}
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_runs_side_by_side(finished: Path, other: Path, tmp_path: Path, vpd: Vpd) -> None:
    page = tmp_path / "page.html"
    called = vpd("report", finished, other, "-o", page)
    assert (called.code, called.out) == (0, f"{page}\n")
    html = page.read_text()
    assert re.findall("<h2>(.*)</h2>", html) == [
        "Runs", "Verdict", "What differs in the run files", "Charts", "Metrics",
    ]  # fmt: skip
    (fields,) = re.findall('<table id="fields".*?</table>', html, re.DOTALL)
    assert re.findall(">([^<>]+)</t[hd]>", fields) == ["target.pretrain.seed", "0", "7", "pd.seed", "0", "7"]
    assert "0 of 2 runs meet every measure" in html and "Stopped before the end" not in html
    data = json.loads(re.findall('<script type="application/json" id="charts-data">(.*?)</script>', html)[0])
    losses = {choice["name"]: choice for choice in data["chart-losses"]["choices"]}
    assert [line["name"] for line in losses["total"]["lines"]] == ["tiny", "another"]
    assert set(losses["total"]["lines"][1]["y"]) == {0.5}
    assert data["chart-evaluations"]["choices"][0]["name"] == "L0 of all matrices"
    assert '<td class="number" data-value="' in html and "<small>" in html
    beside = vpd("report", other, finished)
    assert Path(beside.out.strip()).parent == other.parent and Path(beside.out.strip()).name.startswith("report-")


def test_what_stands_beside_nothing_is_refused(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    pretrained = RunDirectory(tmp_path / "pretrained")
    pretrained.path.mkdir()
    pretrained.write_facts({"schema_version": 1, "kind": "pretraining"})
    for arguments, said in (
        ((finished, finished), "is given twice"),
        ((finished, tmp_path / "absent"), "there is no run directory"),
        ((finished, pretrained.path), "is a pretraining run"),
        ((finished, "-o", tmp_path / "page.html"), "-o is for several runs"),
    ):
        called = vpd("report", *arguments)
        assert called.code == 2 and said in one_line(called.err)
    assert not list(tmp_path.glob("*.html"))


def test_named_metrics_are_what_they_are_among_all(finished: Path, vpd: Vpd) -> None:
    every = json.loads(vpd("evaluate", finished, "--json").out)["metrics"]
    arguments = ("evaluate", finished, "--json", "--step", "latest", "--metrics")
    found = json.loads(vpd(*arguments, "CI_L0,StochasticReconLoss", "--metrics", "EffectiveRank").out)
    assert found["verdict"] is None and found["diagnoses"] is None
    ranks = {name for name in found["metrics"] if name.startswith("EffectiveRank/")}
    assert set(found["metrics"]) - ranks == {"CI_L0/linear1", "CI_L0/linear2", "loss/StochasticReconLoss"}
    assert len(ranks) >= 4 and not ranks & set(every), "of a type that the run file does not name"
    for name in set(found["metrics"]) - ranks:
        assert found["metrics"][name] == pytest.approx(every[name], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nothing", "there is no such metric; the run file has"),
        ("PersistentPGDReconLoss", "belong to the training state"),
        ("PGDReconProbe", "it needs settings (budgets, step_size, mask_scope)"),
        ("CIMaskedAttnPatternsReconLoss", "it needs settings"),
    ],
)
def test_what_can_not_be_named(finished: Path, vpd: Vpd, name: str, said: str) -> None:
    called = vpd("evaluate", finished, "--metrics", name)
    assert called.code == 2 and f"--metrics {name}: " in called.err and said in one_line(called.err)
