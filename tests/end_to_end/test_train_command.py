"""``vpd train``, ``evaluate``, ``report`` and ``config`` on runs that work, and on losses and disks that don't."""

import json
import os
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import Called, Vpd, finish, one_line, records, saved_steps, start, tiny, tree, write_file

from vpd import NonFiniteError, open_run, read_run_file, run_directory
from vpd.face import decompose
from vpd.machine import use_compile_cache
from vpd.run_directory import RunDirectory


def _train(vpd: Vpd, folder: Path, *more: object, **changes: object) -> Called:
    return vpd("train", write_file(folder, **changes), "--out-dir", folder / "runs", "--quiet", *more)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run where another out_dir would have put it."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


def test_a_second_start_of_a_finished_run(copy: Path, tmp_path: Path, vpd: Vpd) -> None:
    before = tree(copy)
    called = _train(vpd, tmp_path)
    assert called.code == 0
    assert "finished already" in one_line(called.err)
    assert called.out.splitlines()[-1] == str(copy)
    assert tree(copy) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pd__seed": 1}, "pd.seed"),
        ({"pd__steps": 70}, "pd.steps"),
        ({"pd__batch_size": 32, "eval": None}, "pd.batch_size"),
        ({"data": {"feature_probability": 0.1}}, "data.feature_probability"),
        ({"pd__ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [9]}}, "pd.ci_config.hidden_dims"),
        ({"target__pretrain": {"steps": 51, "batch_size": 64, "lr": 5e-3}}, "target.pretrain.steps"),
    ],
)
def test_another_trajectory_under_the_same_name(
    changes: dict[str, object], field: str, copy: Path, tmp_path: Path, vpd: Vpd
) -> None:
    before = tree(copy)
    called = _train(vpd, tmp_path, **changes)
    assert (called.code, called.out) == (2, "")
    assert field in one_line(called.err)
    assert tree(copy) == before


def test_objects_on_standard_output(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    called = vpd("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--json")
    *progress, result = map(json.loads, called.out.splitlines())
    assert {told["kind"] for told in progress} == {"progress"} and progress[-1]["step"] == 60
    assert (result["kind"], result["run"], result["finished"]) == ("result", str(tmp_path / "runs" / "tiny"), True)
    found = json.loads(vpd("evaluate", finished, "--json").out)["metrics"]  # the adversaries' state is not in it
    assert result["step"] == 60 and found.items() <= result["metrics"].items() and len(found) > 20
    several = vpd("train", write_file(tmp_path), write_file(tmp_path, "b.yaml"), "--out-dir", tmp_path, "--json")
    assert several.code == 2 and "one at a time" in one_line(several.err)


def test_another_cadence_under_the_same_name(copy: Path, tmp_path: Path, vpd: Vpd) -> None:
    cadence = {"train_log_every": 7, "save_every": 20}
    assert _train(vpd, tmp_path, cadence=cadence).code == 0
    for step in (30, 40, 50, 60):
        shutil.rmtree(copy / "checkpoints" / str(step))
    RunDirectory(copy).update_facts(status="stopped")
    called = _train(vpd, tmp_path, cadence=cadence)
    assert called.code == 0, called.err
    assert saved_steps(copy) == [10, 20, 40, 60]
    assert [r["step"] for r in records(copy) if r["kind"] == "train"] == [0, 5, 10, 15, 21, 28, 35, 42, 49, 56, 59]


def test_a_run_directory_goes_on_where_it_lies(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    """Copied or renamed, from whatever working directory: the directory that was named is the one that is trained."""
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(finished, moved)
    shutil.rmtree(moved / "checkpoints" / "60")
    RunDirectory(moved).update_facts(status="stopped")
    original = tree(finished)
    called = vpd("train", moved, "--quiet")
    assert called.code == 0, called.err
    assert called.out.splitlines()[-1] == str(moved)
    assert saved_steps(moved)[-1] == 60
    assert tree(finished) == original


@pytest.mark.slow
def test_a_run_directory_named_from_another_place(
    finished: Path, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    file = write_file(tmp_path, eval=None)
    monkeypatch.chdir(tmp_path / "a")
    assert vpd("train", file, "--steps", 20, "--out-dir", "runs", "--quiet").code == 0
    monkeypatch.chdir(tmp_path / "b")
    called = vpd("train", "../a/runs/tiny", "--quiet")
    assert called.code == 0, called.err
    assert "finished already" in called.err
    assert tree(tmp_path / "b") == {}


@pytest.mark.parametrize("option", ["--run-id=same", "--out-dir=runs"])
def test_two_files_of_one_run_directory(option: str, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    called = vpd("train", write_file(tmp_path), write_file(tmp_path / "other", pd__seed=1), option, "--quiet")
    assert called.code == 2, called.out
    one_line(called.err)
    assert not (tmp_path / "runs").exists()


def test_what_the_command_line_gives_may_be_missing_in_the_file(tmp_path: Path, vpd: Vpd) -> None:
    path = write_file(tmp_path, eval=None)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line != "  steps: 60\n"))
    called = vpd("train", path, "--steps", 20, "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0, called.err


def test_a_second_process_is_refused(copy: Path, tmp_path: Path, vpd: Vpd) -> None:
    directory = RunDirectory(copy)
    directory.update_facts(status="running")
    before = tree(copy)
    with directory.locked():
        called = _train(vpd, tmp_path)
    assert (called.code, called.out) == (2, "")
    assert "another process" in one_line(called.err)
    assert tree(copy) == before


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    file = write_file(tmp_path, pd__steps=20_000, eval=None)
    arguments = ("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    processes = [start(*arguments), start(*arguments)]
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.05)
        code, out, err = finish(next(process for process in processes if process.poll() is not None))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (code, out) == (2, "")
    one_line(err)


def test_evaluate_prints_one_object_and_the_same_twice(finished: Path, vpd: Vpd) -> None:
    before = tree(finished)
    first, second = vpd("evaluate", finished, "--json"), vpd("evaluate", finished, "--json")
    assert (first.code, first.err) == (0, "")
    assert first.out == second.out and len(first.out.splitlines()) == 1
    found = json.loads(first.out)
    assert {"metrics", "verdict", "diagnoses"} <= set(found)
    assert isinstance(found["verdict"]["solved"], bool) and found["verdict"]["rows"]
    wrong = [row for row in found["verdict"]["rows"] if row["ok"] is False]
    assert found["verdict"]["solved"] is not bool(wrong)
    assert all({"name", "sentence", "evidence", "knob"} == set(one) for one in found["diagnoses"])
    assert {"recon", "sites", "adversaries", "l0", "delta"} == set(found["health"])
    assert found["step"] == 60
    assert tree(finished) == before


def test_evaluate_finds_what_training_found(finished: Path, vpd: Vpd) -> None:
    found = json.loads(vpd("evaluate", finished, "--json").out)["metrics"]
    recorded = next(r for r in reversed(records(finished)) if r["kind"] == "eval")["metrics"]
    both = set(found) & set(recorded)
    assert len(both) > 10
    assert {key: found[key] for key in both} == pytest.approx({key: recorded[key] for key in both}, rel=1e-5)


def test_evaluate_as_tables(finished: Path, vpd: Vpd) -> None:
    called = vpd("evaluate", finished, "--step", 20, "--batches", 1)
    assert called.code == 0
    assert "step 20" in called.out and "features recovered" in called.out


def test_report(copy: Path, vpd: Vpd) -> None:
    written = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    called = vpd("report", copy)
    assert (called.code, called.err) == (0, "")
    assert called.out.splitlines() == [str(copy / "report.html")]
    assert len((copy / "report.html").read_bytes()) == pytest.approx(len(written), rel=0.01)


def test_config_commands(tmp_path: Path, vpd: Vpd) -> None:
    path = write_file(tmp_path)
    assert vpd("config", "check", path).out == f"{path}: ok\n"
    assert json.loads(vpd("config", "schema").out)["properties"]["pd"]
    assert "decomposition_targets" in vpd("config", "reference").out


def test_losses_that_blow_up(tmp_path: Path, vpd: Vpd) -> None:
    rate = {"lr_schedule": {"start_val": 1e30}}
    cadence = {"train_log_every": 1, "save_every": 1}
    called = _train(vpd, tmp_path, pd__components_optimizer=rate, cadence=cadence, eval=None)
    assert called.code == 1, called.err
    said = one_line(called.err)
    assert "StochasticReconLoss" in said and "step 1 " in said
    run = open_run(tmp_path / "runs" / "tiny")
    assert run.step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.decomposition))
    assert run.status not in ("running", "finished")


@pytest.mark.parametrize("evaluated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_parameters_that_are_not_finite_are_neither_saved_nor_evaluated(
    evaluated: bool, tmp_path: Path, vpd: Vpd
) -> None:
    """The loss of step 0 is finite, and the update after it is not."""
    rate = {"lr_schedule": {"start_val": 3e38}, "weight_decay": 1.0}
    cadence = {"train_log_every": 1, "save_every": 1}
    block = {**tiny()["eval"], "every": 1, "slow_every": 1} if evaluated else None
    called = _train(vpd, tmp_path, pd__components_optimizer=rate, cadence=cadence, eval=block)
    assert called.code == 1, called.err
    one_line(called.err)
    assert saved_steps(tmp_path / "runs" / "tiny") == []


def test_a_term_that_rests_is_not_to_blame(tmp_path: Path) -> None:
    rate = {"lr_schedule": {"start_val": 1e30}}
    file = write_file(tmp_path, eval=None, pd__components_optimizer=rate, pd__ci_fn_optimizer=rate)
    with pytest.raises(NonFiniteError) as caught:
        decompose(file, out_dir=tmp_path / "runs", quiet=True)
    assert "PersistentPGDReconLoss" not in str(caught.value)


@pytest.mark.parametrize("out_dir", ["file", "file/below", "/proc/nowhere", "x" * 300])
def test_an_out_dir_that_cannot_be_written(
    out_dir: str, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    file = write_file(tmp_path, eval=None)
    before = tree(tmp_path)
    called = vpd("train", file, "--out-dir", out_dir, "--quiet")
    assert called.code in (1, 2) and called.out == ""
    one_line(called.err)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "empty folder", "other folder"])
def test_something_else_under_the_name_of_the_run(kind: str, tmp_path: Path, vpd: Vpd) -> None:
    path = tmp_path / "runs" / "tiny"
    path.parent.mkdir()
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    if kind == "other folder":
        (path / "notes.txt").write_text("mine")
    before = tree(path.parent)
    called = _train(vpd, tmp_path)
    assert (called.code, called.out) == (2, "")
    assert str(path) in one_line(called.err)
    assert tree(path.parent) == before


def test_a_full_disk(tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a record fails as it does where there is no space left."""
    original, count = os.write, [0]

    def write(descriptor: int, content: bytes) -> int:
        count[0] += 1
        if count[0] == 5:
            raise OSError(28, "No space left on device")
        return original(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(run_directory.os, "write", write)
        called = _train(vpd, tmp_path, eval=None)
    assert called.code == 1
    assert "No space left" in one_line(called.err)
    again = _train(vpd, tmp_path, eval=None)
    assert again.code == 0, again.err


def test_the_compile_cache_of_a_run_file(tmp_path: Path) -> None:
    before = jax.config.jax_compilation_cache_dir
    runtime = {"compilation_cache_dir": str(tmp_path / "cc")}
    use_compile_cache(read_run_file(write_file(tmp_path, runtime=runtime)).config.runtime.compilation_cache_dir)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cc")
    jax.config.update("jax_compilation_cache_dir", before)
