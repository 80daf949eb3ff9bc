"""``--override-config`` goes on with other values; ``resume_provenance`` begins from another run."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from test_damaged_checkpoints import cut, values
from tiny_run import Vpd, assert_same_run, one_line, records, saved_steps, tiny, tree, write_file

from vpd import open_run, read_run_file
from vpd.experiment import build, first_state
from vpd.run_directory import RunDirectory
from vpd.training.checkpoint import named_leaves


@pytest.fixture
def halfway(finished: Path, tmp_path: Path) -> Path:
    """The run as if it had been stopped at step 30."""
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))
    for step in (40, 50, 60):
        shutil.rmtree(run / "checkpoints" / str(step))
    RunDirectory(run).update_facts(status="stopped")
    return run


def _losses(coeff: float) -> list:
    losses = tiny()["pd"]["loss_metrics"]
    losses[1]["coeff"] = coeff
    return losses


def test_going_on_with_other_values(halfway: Path, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    file = write_file(tmp_path, pd__loss_metrics=_losses(0.5), pd__steps=70)
    arguments = ("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    before = tree(halfway)
    refused = vpd(*arguments)
    assert refused.code == 2 and "--override-config" in one_line(refused.err)
    assert tree(halfway) == before
    called = vpd(*arguments, "--override-config")
    assert called.code == 0, called.err
    assert "from step 30" in called.err and saved_steps(halfway)[-1] == 70
    (override,) = RunDirectory(halfway).read_facts()["overrides"]
    assert override["step"] == 30 and override["time"]
    changed = {"pd.steps": {"old": 60, "new": 70}, "pd.loss_metrics[1].coeff": {"old": 3e-3, "new": 0.5}}
    assert override["fields"] == changed
    config = read_run_file(halfway / "config.yaml").config
    assert (config.pd.steps, config.pd.loss_metrics[1].coeff) == (70, 0.5)
    assert records(halfway)[:8] == records(finished)[:8]
    assert records(halfway) != records(finished)
    again = vpd("train", halfway, "--quiet")
    assert again.code == 0 and "finished already" in again.err


def test_a_finished_run_is_prolonged(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))
    called = vpd("train", run, "--steps", 70, "--quiet", "--override-config")
    assert called.code == 0, called.err
    assert saved_steps(run)[-1] == 70 and RunDirectory(run).read_facts()["overrides"][0]["step"] == 60
    refused = vpd("train", run, "--steps", 40, "--quiet", "--override-config")
    assert refused.code == 2 and "at step 70" in one_line(refused.err)


IMPOSSIBLE = [
    ({"pd__ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [9]}}, "pd.ci_config.hidden_dims"),
    ({"pd__decomposition_targets": [{"module_pattern": "linear*", "C": 7}]}, "pd.decomposition_targets"),
    ({"target__pretrain": {"steps": 51, "batch_size": 64, "lr": 5e-3}}, "target.pretrain.steps"),
    ({"pd__components_optimizer": {"type": "muon", "lr_schedule": {"start_val": 1e-2}}}, "components_optimizer.type"),
    ({"pd__batch_size": 32}, "pd.batch_size"),  # the adversary has a source for every example
    ({"pd__loss_metrics": tiny()["pd"]["loss_metrics"][:3]}, "pd.loss_metrics"),
]


@pytest.mark.parametrize(("changes", "field"), IMPOSSIBLE)
def test_what_a_run_cannot_go_on_with(changes: dict, field: str, halfway: Path, tmp_path: Path, vpd: Vpd) -> None:
    before = {path: content for path, content in tree(halfway).items() if path != ".lock"}
    file = write_file(tmp_path, **changes)
    refused = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet", "--override-config")
    assert (refused.code, refused.out) == (2, "")
    assert field in one_line(refused.err) and "can't go on" in refused.err
    assert {path: content for path, content in tree(halfway).items() if path != ".lock"} == before


def test_several_runs_are_not_overridden(tmp_path: Path, vpd: Vpd) -> None:
    refused = vpd("train", write_file(tmp_path), "--seeds", 2, "--out-dir", tmp_path / "runs", "--override-config")
    assert refused.code == 2 and "one at a time" in one_line(refused.err)
    assert not (tmp_path / "runs").exists()


def _child(folder: Path, parent: Path, step: int | None, **changes: object) -> Path:
    path = write_file(folder, "child.yaml", pd__steps=20, pd__seed=7, **changes)
    with path.open("a") as file:
        file.write(
            f"resume_provenance:\n  parent_run_dir: {parent}\n  parent_step: {'null' if step is None else step}\n"
        )
    return path


@pytest.mark.parametrize("step", [None, 30])
def test_beginning_from_another_run(step: int | None, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    before = tree(finished)
    other = {"n_features": 5, "n_hidden": 2, "pretrain": {"steps": 60, "batch_size": 64, "lr": 5e-3}}
    file = _child(tmp_path, finished, step, target=other, cadence={"train_log_every": 5, "save_every": 10})
    called = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0, called.err
    child = tmp_path / "runs" / "child"
    parent = RunDirectory(child).read_facts()["parent"]
    assert parent == {"path": str(finished), "step": step or 60, "run_id": "tiny"}
    assert saved_steps(child) == [10, 20] and tree(finished) == before
    assert not np.array_equal(open_run(child).components("linear1").V, open_run(finished).components("linear1").V)


def test_the_state_begun_from(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V, U and the CI function are the parent's to the bit; all else is as in a fresh run of that seed."""
    from vpd import run as module
    from vpd.face import decompose

    seen = []
    train = module.train
    monkeypatch.setattr(
        module, "train", lambda p, s, *rest: (seen.append(jax.tree.map(np.array, s)), train(p, s, *rest))[1]
    )
    child = decompose(_child(tmp_path, finished, 40), out_dir=tmp_path / "runs", quiet=True)
    (state,) = seen
    parent = open_run(finished, step=40).decomposition
    fresh = first_state(build(child.config, child.experiment.target))
    for a, b in ((state.decomposition, parent), (state.training, fresh.training)):
        left, right = named_leaves(a), named_leaves(b)
        assert list(left) == list(right)
        assert all(np.array_equal(left[n], right[n]) for n in left)
    assert int(state.training.step) == 0


def test_a_killed_child_begins_again_from_its_parent(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    file = _child(tmp_path, finished, None)
    for name in ("a", "b"):
        assert vpd("train", file, "--out-dir", tmp_path / name, "--quiet").code == 0
        if name == "b":
            shutil.rmtree(tmp_path / "b" / "child" / "checkpoints")
            RunDirectory(tmp_path / "b" / "child").update_facts(status="running")
            assert vpd("train", file, "--out-dir", tmp_path / name, "--quiet").code == 0
    assert_same_run(tmp_path / "a" / "child", tmp_path / "b" / "child")


def test_a_damaged_parent(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    parent = Path(shutil.copytree(finished, tmp_path / "parent"))
    cut(values(parent / "checkpoints" / "60", "decomposition"))
    before = tree(parent)
    refused = vpd("train", _child(tmp_path, parent, 60), "--out-dir", tmp_path / "runs", "--quiet")
    assert refused.code == 2 and "damaged" in one_line(refused.err) and not (tmp_path / "runs").exists()
    called = vpd("train", _child(tmp_path, parent, None), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0 and "step 50 is begun from" in called.err
    assert RunDirectory(tmp_path / "runs" / "child").read_facts()["parent"]["step"] == 50
    assert tree(parent) == before


MISFITS = [
    ({"pd__decomposition_targets": [{"module_pattern": "linear*", "C": 7}]}, "linear1.V is float32[5, 6]"),
    ({"pd__ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [9]}}, "pd.ci_config.hidden_dims"),
    ({"pd__decomposition_targets": [{"module_pattern": "linear1", "C": 6}], "pd__tied_weights": []}, "linear2"),
]


@pytest.mark.parametrize(("changes", "said"), MISFITS)
def test_a_parent_that_does_not_fit(changes: dict, said: str, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    file = _child(tmp_path, finished, None, eval=None, **changes)
    refused = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert (refused.code, refused.out) == (2, "")
    assert said in one_line(refused.err) and "does not fit" in refused.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("parent", "step"), [("nowhere", None), ("finished", 35)])
def test_a_parent_that_is_not_there(parent: str, step: int | None, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    folder = finished if parent == "finished" else tmp_path / parent
    refused = vpd("train", _child(tmp_path, folder, step), "--out-dir", tmp_path / "runs", "--quiet")
    assert (refused.code, refused.out) == (2, "")
    assert str(folder) in one_line(refused.err)
    assert not (tmp_path / "runs").exists()
