"""SIGTERM and SIGINT: exit code 75, saved or nothing to save yet, and the next start goes on."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_run import (
    Vpd,
    assert_nothing_half_written,
    assert_same_run,
    finish,
    one_line,
    records,
    saved_steps,
    start,
    tiny,
    write_file,
)

from vpd import run as a_run
from vpd.errors import Stopped
from vpd.run_directory import RunDirectory
from vpd.signals import StopSignals
from vpd.targets import build


def _signal_at_record(monkeypatch: pytest.MonkeyPatch, number: int, signals: list[int]) -> None:
    original, count = RunDirectory.append_record, [0]

    def append(self: RunDirectory, record: dict[str, object]) -> None:
        original(self, record)
        count[0] += 1
        if count[0] == number:
            for chosen in signals:
                os.kill(os.getpid(), chosen)

    monkeypatch.setattr(RunDirectory, "append_record", append)


@pytest.mark.parametrize(
    ("chosen", "record"), [(signal.SIGINT, 7), pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow)]
)
def test_a_signal_while_training(
    chosen: int, record: int, finished: Path, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    run = tmp_path / "runs" / "tiny"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with monkeypatch.context() as patch:
        _signal_at_record(patch, record, [chosen])
        stopped = vpd(*arguments)
    assert stopped.code == 75, stopped.err
    assert stopped.out.splitlines()[-1] == str(run)
    assert "Traceback" not in stopped.err and f"vpd train {run}" in stopped.err
    assert RunDirectory(run).read_facts()["status"] == "stopped"
    assert saved_steps(run)
    assert {number: signal.getsignal(number) for number in before} == before
    again = vpd(*arguments)
    assert again.code == 0, again.err
    assert_same_run(finished, run)


@pytest.mark.parametrize("when", ["pretrain_tms", "lower_program", "events_of"])
def test_a_signal_before_anything_is_recorded(
    when: str, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an evaluation there is no record to report either, whether or not there is a state to save."""
    owner = build if when == "pretrain_tms" else a_run
    original = getattr(owner, when)

    def signalled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    pretrain = {"steps": 51, "batch_size": 64, "lr": 5e-3}  # in no cache
    file = write_file(tmp_path, eval=None, target__pretrain=pretrain)
    with monkeypatch.context() as patch:
        patch.setattr(owner, when, signalled)
        stopped = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert stopped.code == 75, stopped.err
    assert "Traceback" not in stopped.err and "stopped by a signal" in stopped.err
    assert_nothing_half_written(tmp_path / "runs" / "tiny")


def _until(path: Path, process: object) -> None:
    while not path.exists() and process.poll() is None:  # type: ignore[attr-defined]
        time.sleep(0.002)


@pytest.mark.slow
def test_sigterm_to_a_process(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    run = tmp_path / "runs" / "tiny"
    process = start(*arguments)
    _until(run / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 75, err
    assert out.splitlines()[-1] == str(run)
    assert "Traceback" not in err
    last = saved_steps(run)[-1]
    assert vpd(*arguments).code == 0
    if last % 10:
        shutil.rmtree(run / "checkpoints" / str(last))
    assert_same_run(finished, run)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["pretraining", "directory", ".lock", "checkpoints"])
def test_a_signal_before_training(when: str, chosen: int, tmp_path: Path) -> None:
    """Nothing to save yet: 75, no traceback, and the same command goes on."""
    pretrain = {"steps": 300_000 if when == "pretraining" else 50, "batch_size": 64, "lr": 5e-3}
    file = write_file(tmp_path, target__pretrain=pretrain, eval=None)
    arguments = ("train", file, "--out-dir", tmp_path / "runs", "--quiet", "--steps", 20)
    run = tmp_path / "runs" / "tiny"
    process = start(*arguments)
    if when == "pretraining":
        time.sleep(12)
    else:
        _until(run if when == "directory" else run / when, process)
    process.send_signal(chosen)
    code, _, err = finish(process)
    assert code == 75, err
    assert "Traceback" not in err
    assert_nothing_half_written(run)
    if when != "pretraining":
        code, _, err = finish(start(*arguments))
        assert code == 0, err


@pytest.mark.slow
def test_a_second_sigint_leaves_at_once(tmp_path: Path) -> None:
    file = write_file(tmp_path, pd__steps=200_000, eval=None, runtime={"steps_per_dispatch": 200_000}, cadence={
        "train_log_every": 200_000,
    })  # fmt: skip
    run = tmp_path / "runs" / "tiny"
    process = start("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    _until(run / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = finish(process)
    assert code == 130, err
    assert time.monotonic() - began < 5  # the dispatch that is under way takes longer
    assert "Traceback" not in err
    assert_nothing_half_written(run)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_training_program_is_compiled(chosen: int, tmp_path: Path) -> None:
    """Compiling is one call, between whose ends Python hears of nothing; the process leaves all the same."""
    pd = {**tiny()["pd"], "n_mask_samples": 40, "seed": 1}  # a program that takes a while, and is in no cache
    file = write_file(tmp_path, pd=pd, eval=None)
    run = tmp_path / "runs" / "tiny"
    process = start("train", file, "--out-dir", tmp_path / "runs", "--quiet", XDG_CACHE_HOME=tmp_path / "cache")
    _until(run / "checkpoints", process)
    time.sleep(1.5)
    process.send_signal(chosen)
    began = time.monotonic()
    code, out, err = finish(process)
    assert (code, out) == (75, ""), err
    assert time.monotonic() - began < 8
    assert one_line(err).endswith("start again when you like")
    assert not saved_steps(run)
    assert_nothing_half_written(run)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 60])
def test_an_evaluation_is_abandoned(step: int, finished: Path, tmp_path: Path) -> None:
    """A pass of a million batches is left at once; the state it is of is saved, and none of it is recorded."""
    run = tmp_path / "runs" / "tiny"
    if step:
        shutil.copytree(finished, run)
        RunDirectory(run).update_facts(status="stopped")
    process = start("train", write_file(tmp_path, eval__n_steps=1_000_000), "--out-dir", tmp_path / "runs", "--quiet")
    _until(run / ".lock", process)
    while process.poll() is None and RunDirectory(run).read_facts()["status"] != "running":
        time.sleep(0.002)
    time.sleep(8)  # the programs of the evaluation are compiled by then
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, out, err = finish(process)
    assert code == 75, err
    assert time.monotonic() - began < 6
    assert out.splitlines()[-1] == str(run) and "Traceback" not in err
    assert RunDirectory(run).read_facts()["status"] == "stopped" and saved_steps(run)[-1] == step
    assert not [r for r in records(run) if r["kind"] == "eval" and r["step"] == step] if step else True
    code, _, err = finish(start("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet"))
    assert code == 0, err
    assert_same_run(finished, run)


class _SignalledWhenFreed:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))


def test_a_signal_in_a_callback_that_swallows_errors() -> None:
    """What a handler raises while something is freed goes nowhere; the signal is not lost with it."""
    with pytest.raises(Stopped), StopSignals():
        freed = _SignalledWhenFreed()
        del freed
        for _ in range(1000):
            time.sleep(0.001)
