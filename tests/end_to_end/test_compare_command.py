"""``vpd compare`` on tiny runs: numbers, files, refusals."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TINY, Vpd, one_line, tree, write_file

from vpd import open_run
from vpd.analysis.live import live_by_mean, live_set
from vpd.evaluation.agreement import Pieces, agreements
from vpd.evaluation.suite import ALIVE_MEAN_CI
from vpd.face import decompose
from vpd.run_directory import RunDirectory


@pytest.fixture(scope="session")
def family(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of one target in one folder: the finished one, another seed, an untied one, and one of a single site."""
    folder = tmp_path_factory.mktemp("family")
    runs = folder / "runs"
    shutil.copytree(finished, runs / "tiny-0")
    with jax.numpy_dtype_promotion("standard"):
        decompose(write_file(folder), seed=1, out_dir=runs, run_id="tiny-1", quiet=True)
        untied = write_file(folder, pd__tied_weights=[], eval=None)
        decompose(untied, steps=20, out_dir=runs, run_id="tiny-untied", quiet=True)
        one = [{"module_pattern": "linear1", "C": 4}]
        single = write_file(folder, pd__decomposition_targets=one, eval=None)
        decompose(single, steps=20, out_dir=runs, run_id="tiny-single", quiet=True)
        pretrain = {**TINY["target"]["pretrain"], "seed": 5}
        other = write_file(folder, target__pretrain=pretrain, eval=None)
        decompose(other, steps=10, out_dir=folder, run_id="other", quiet=True)
    yield runs


def compare(vpd: Vpd, *arguments: object) -> dict:
    called = vpd("compare", *arguments, "--json")
    assert called.code == 0, called.err
    return json.loads(called.out)


def test_a_copy_agrees_with_its_original(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    copy = shutil.copytree(family / "tiny-0", tmp_path / "copy")
    before = tree(copy)
    found = compare(vpd, family / "tiny-0", copy, "-o", tmp_path / "out")
    assert tree(copy) == before
    assert found["agreement"]["minimum_over_sites"] == pytest.approx(1.0)
    for site in found["sites"].values():
        for measure in site["agreement"].values():
            for kind in ("matched", "covering"):
                assert measure[kind]["minimum"] == pytest.approx(1.0)
                assert measure[kind]["pairs"][0][0] is None


def test_what_is_written(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    out = tmp_path / "out"
    called = vpd("compare", family / "tiny-0", family / "tiny-1", "-o", out)
    assert (called.code, called.err) == (0, "")
    assert called.out.splitlines()[-1] == str(out)
    names = {"agreement.png", "similarity_curves.png", "pareto.png", "compare.html", "compare.json"}
    assert {p.name for p in out.iterdir()} == names
    html = (out / "compare.html").read_text()
    assert html.count("<img ") == 3 and "http://" not in html and "https://" not in html and "<script" not in html
    found = json.loads((out / "compare.json").read_bytes())
    assert found == compare(vpd, family / "tiny-0", family / "tiny-1", "-o", out)
    assert [run["label"] for run in found["runs"]] == ["0", "1"]
    assert "single-feature" in found["live"]
    front = found["trade_off"]
    assert (front["kind"], front["recon"]) == ("adversarial probe", "loss/PGDReconLoss_3x0.1")
    for run, point in zip(found["runs"], front["points"], strict=True):
        assert point["recon"] == run["metrics"]["loss/PGDReconLoss_3x0.1"]
        assert point["l0"] == pytest.approx(sum(run["metrics"][f"CI_L0/{s}"] for s in found["sites"]))
    assert any(point["front"] for point in front["points"])


def test_the_numbers_are_those_of_the_arrays(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    runs = [open_run(family / name) for name in ("tiny-0", "tiny-untied")]
    found = compare(vpd, *(run.path for run in runs), "-o", tmp_path / "out")
    sets = [live_set(run) for run in runs]
    for site in runs[0].sites:
        probe = [np.asarray(run.causal_importances(0.75 * jnp.eye(5))[site]) for run in runs]
        pieces = []
        for run, live, ci in zip(runs, sets, probe, strict=True):
            assert live.live[site].tolist() == (ci > 0.1).any(axis=0).tolist()
            at = run.components(site)
            pieces.append(Pieces(np.asarray(at.V)[:, live.live[site]], np.asarray(at.U)[live.live[site]]))
        assert found["sites"][site]["live"] == [p.n for p in pieces]
        for measure, expected in agreements(*pieces).items():
            written = found["sites"][site]["agreement"][measure]
            assert written["covering"]["pairs"][0][1] == pytest.approx(expected.covering)
            assert written["matched"]["pairs"][1][0] == pytest.approx(expected.matched)


def test_runs_without_evaluation_or_with_fewer_sites(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    names = ("tiny-untied", "tiny-single", "tiny-0")
    found = compare(vpd, *(family / name for name in names), "-o", tmp_path / "out")
    assert found["sites"]["linear2"]["live"][1] is None
    pairs = found["sites"]["linear2"]["agreement"]["rank_one"]["covering"]["pairs"]
    assert pairs[0][1] is None and pairs[0][2] is not None
    assert found["trade_off"] is None
    called = vpd("compare", family / "tiny-untied", family / "tiny-single", "-o", tmp_path / "out")
    assert called.code == 0
    assert "decomposed in one run only, left out: linear2" in called.out and "no front" in called.out


def test_an_unfinished_run_is_read_and_named(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    copy = shutil.copytree(family / "tiny-1", tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "60")
    RunDirectory(copy).update_facts(status="stopped")
    called = vpd("compare", family / "tiny-0", copy, "-o", tmp_path / "out")
    assert called.code == 0 and "copy is stopped and was read at step 50" in called.out


def test_the_default_folder_lies_beside_the_runs_and_is_written_again(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    runs = [shutil.copytree(family / name, tmp_path / "runs" / name) for name in ("tiny-0", "tiny-untied")]
    first = vpd("compare", *runs)
    assert first.code == 0
    (folder,) = (tmp_path / "runs").glob("compare-*")
    assert first.out.splitlines()[-1] == str(folder)
    again = vpd("compare", *sorted((tmp_path / "runs").iterdir()))
    assert again.code == 0 and "earlier comparison, skipped" in one_line(again.err)
    assert again.out == first.out
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_runs_of_different_targets(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    before = tree(tmp_path)
    called = vpd("compare", family / "tiny-0", family.parent / "other", "-o", tmp_path / "out")
    assert (called.code, called.out) == (2, "")
    said = one_line(called.err)
    assert "different targets" in said and "linear1, linear2" in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("tiny-0",), "at least two"),
        (("tiny-0", "tiny-1", "tiny-0"), "given twice"),
        (("tiny-0", "tiny-1/../tiny-0"), "given twice"),
        (("tiny-0", "absent"), "no run directory"),
        (("tiny-0", "tiny-0/config.yaml"), "no run directory"),
    ],
)
def test_runs_that_cannot_be_compared(names: tuple[str, ...], words: str, family: Path, vpd: Vpd) -> None:
    before = tree(family)
    called = vpd("compare", *(family / name for name in names))
    assert (called.code, called.out) == (2, "")
    assert words in one_line(called.err)
    assert tree(family) == before


def test_a_folder_with_other_content_is_left_alone(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    called = vpd("compare", family / "tiny-0", family / "tiny-1", "-o", tmp_path)
    assert called.code == 2 and "left alone" in one_line(called.err)
    assert set(tree(tmp_path)) == {"mine.txt"}


def test_hostile_names_stay_text(family: Path, tmp_path: Path, vpd: Vpd) -> None:
    name = "<script>alert(1)<"
    copy = shutil.copytree(family / "tiny-0", tmp_path / name)
    assert vpd("compare", family / "tiny-1", copy, "-o", tmp_path / "out").code == 0
    assert "<script" not in (tmp_path / "out" / "compare.html").read_text()


def test_live_by_mean_importance(family: Path) -> None:
    """What counts for targets without single features; on the toy's own batches it is nearly the same set."""
    run = open_run(family / "tiny-0")
    found = live_by_mean(run, batches=3)
    assert "3 evaluation batches" in found.criterion and f"{ALIVE_MEAN_CI:g}" in found.criterion
    draw = run.experiment.eval_batch
    assert draw is not None
    seed = jnp.asarray(run.config.pd.seed, jnp.uint32)
    batches = [run.causal_importances(draw(seed, jnp.asarray(i, jnp.int32))) for i in range(3)]
    for site in run.sites:
        mean = np.mean([np.asarray(batch[site], np.float64) for batch in batches], axis=(0, 1))
        assert found.live[site].tolist() == (mean > ALIVE_MEAN_CI).tolist()
