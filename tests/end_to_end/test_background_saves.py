"""Saves off the step's path: the same bytes as synchronous ones, and one sentence where they fail."""

import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import Vpd, assert_same_run, finish, one_line, saved_steps, start, write_file

from vpd import open_run
from vpd.experiment import build, reopened_target, state_template
from vpd.face import decompose
from vpd.run_directory import RunDirectory
from vpd.training.checkpoint import Checkpoints, named_leaves
from vpd.training.state import TrainState


def _leaves(run: Path, step: int) -> dict[str, bytes]:
    config = open_run(run).config
    template = state_template(build(config, reopened_target(RunDirectory(run), config)))
    state = Checkpoints(run / "checkpoints", writable=False).load_state(step, template)
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


def test_the_same_bytes_as_synchronous_saves(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is the state at its step, which the next dispatches overwrite meanwhile."""
    save, held = Checkpoints.save, {}

    def synchronous(self: Checkpoints, state: TrainState) -> None:
        held[int(state.training.step)] = {n: np.array(x).tobytes() for n, x in named_leaves(state).items()}
        save(self, state)
        self.wait()

    monkeypatch.setattr(Checkpoints, "save", synchronous)
    run = decompose(write_file(tmp_path), out_dir=tmp_path / "runs", quiet=True).path
    assert sorted(held) == saved_steps(run) == saved_steps(finished)
    for step in held:
        assert _leaves(finished, step) == _leaves(run, step) == held[step]
    assert_same_run(finished, run)


def test_a_save_lets_go_on_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one is in flight, and donating the state at once changes nothing in it."""
    from vpd import read_run_file

    experiment = build(read_run_file(write_file(tmp_path)).config)
    state = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), state_template(experiment))
    later = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as writer:
        for _ in range(5):
            writer.save(state)
            unfinished = [p for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdecimal()]
            assert len(unfinished) <= 1
            state = later(state)
    reader = Checkpoints(tmp_path / "checkpoints", writable=False)
    assert reader.steps() == [1, 2, 3, 4, 5]
    for step in reader.steps():
        loaded = reader.load_state(step, state_template(experiment))
        assert all((np.asarray(x) == step).all() for x in jax.tree.leaves(loaded))


def _spoil_after(monkeypatch: pytest.MonkeyPatch, folder: Path, record: int) -> None:
    """At that record, put a file where the checkpoints are."""
    original, count = RunDirectory.append_record, [0]

    def append(self: RunDirectory, found: dict[str, object]) -> None:
        original(self, found)
        count[0] += 1
        if count[0] == record:
            folder.rename(folder.with_name("kept"))
            folder.write_text("in the way")

    monkeypatch.setattr(RunDirectory, "append_record", append)


def test_a_folder_that_cannot_be_written(
    finished: Path, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    run = tmp_path / "runs" / "tiny"
    with monkeypatch.context() as patch:
        _spoil_after(patch, run / "checkpoints", 7)
        failed = vpd(*arguments)
    assert (failed.code, failed.out) == (2, "")
    assert "can't save a checkpoint" in one_line(failed.err)
    assert RunDirectory(run).read_facts()["status"] == "failed"
    (run / "checkpoints").unlink()
    (run / "kept").rename(run / "checkpoints")
    assert saved_steps(run) and open_run(run).step == saved_steps(run)[-1]
    again = vpd(*arguments)
    assert again.code == 0, again.err
    assert_same_run(finished, run)


FULL = """
import resource, sys
from vpd import cli
from vpd.training.checkpoint import Checkpoints
save, count = Checkpoints.save, [0]
def saving(self, state):
    count[0] += 1
    if count[0] == 3:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(self, state)
    if count[0] == 3:
        self.wait()
Checkpoints.save = saving
sys.argv[0] = "vpd"
cli.entry()
"""


@pytest.mark.slow
def test_files_that_can_grow_no_more(finished: Path, tmp_path: Path) -> None:
    """The system refuses every byte after the thousandth of a file, from the third save on."""
    import subprocess
    import sys

    arguments = ["train", str(write_file(tmp_path)), "--out-dir", str(tmp_path / "runs"), "--quiet"]
    run = tmp_path / "runs" / "tiny"
    failed = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, timeout=240)
    assert failed.returncode == 2, failed.stderr
    assert "vpd: can't save a checkpoint" in failed.stderr.splitlines()[-1]
    assert saved_steps(run) == [10, 20] and open_run(run).step == 20
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    assert_same_run(finished, run)


@pytest.mark.slow
def test_killed_while_items_are_being_written(finished: Path, tmp_path: Path) -> None:
    """kill -9 once one item of the newest checkpoint is there and the folder has not its name yet."""
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    run, killed = tmp_path / "runs" / "tiny", 0
    for _ in range(4):
        process = start(*arguments)
        while process.poll() is None:
            if any(p for p in (run / "checkpoints").glob("*tmp*/*") if p.is_dir()):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.0005)
        code, _, err = finish(process)
        assert code in (0, -signal.SIGKILL), err
        if saved_steps(run):
            assert open_run(run).step == saved_steps(run)[-1]
    assert killed
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    assert_same_run(finished, run)
