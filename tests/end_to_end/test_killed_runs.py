"""A run that is killed and started again ends where an uninterrupted one ends, to the bit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import (
    Vpd,
    assert_nothing_half_written,
    assert_same_run,
    finish,
    saved_steps,
    start,
    write_file,
)

from vpd import run as a_run
from vpd.evaluation import drawing
from vpd.face import decompose
from vpd.run import _Recorder
from vpd.run_directory import RunDirectory
from vpd.training.checkpoint import Checkpoints

Moment = Callable[[Path], bool]


class Died(BaseException):
    """Stands for a process that is gone."""


def _die_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, before: bool) -> None:
    original, calls = getattr(owner, name), [0]

    def dying(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if before and calls[0] == call:
            raise Died
        result = original(*arguments, **named)
        if calls[0] == call:
            raise Died
        return result

    monkeypatch.setattr(owner, name, dying)


DEATHS = [
    ("before the first record", RunDirectory, "append_record", 1, True),
    ("in the middle", RunDirectory, "append_record", 8, False),
    ("before the first save", Checkpoints, "save", 1, True),
    ("after a save, before its evaluation", Checkpoints, "save", 4, False),
    ("while evaluating", _Recorder, "evaluate", 3, True),
    ("before the figures appear", drawing.os, "rename", 3, True),
    ("after the last save", Checkpoints, "save", 6, False),
    ("after the last evaluation", _Recorder, "evaluate", 4, False),
    ("before the report", a_run, "write_report", 1, True),
]


FAST = ("before the report",)
CASES = [pytest.param(*d[1:], id=d[0], marks=[] if d[0] in FAST else [pytest.mark.slow]) for d in DEATHS]


@pytest.mark.parametrize(("owner", "name", "call", "before"), CASES)
def test_going_on_after_dying(
    owner: object, name: str, call: int, before: bool, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, runs = write_file(tmp_path), tmp_path / "runs"
    with monkeypatch.context() as patch:
        _die_at(patch, owner, name, call, before)
        with pytest.raises(Died):
            decompose(file, out_dir=runs, quiet=True)
    assert_nothing_half_written(runs / "tiny")
    again = decompose(file, out_dir=runs, quiet=True)
    assert (again.step, again.status) == (60, "finished")
    assert_same_run(finished, again.path)
    assert (again.path / "report.html").exists()


def _saved(step: int) -> Moment:
    return lambda run: (run / "checkpoints" / str(step)).exists()


def _drawing(run: Path) -> bool:
    return any((run / "figures").glob(".*"))


def _saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*tmp*"))


def _recorded(n: int) -> Moment:
    metrics = "metrics.jsonl"
    return lambda run: (run / metrics).exists() and (run / metrics).read_bytes().count(b"\n") >= n


def _kill(arguments: tuple[object, ...], run: Path, moment: Moment | float) -> str | None:
    """Start the run and kill it at a moment; says where it was, None where it finished first."""
    process = start(*arguments)
    began = time.monotonic()
    while process.poll() is None:
        if moment(run) if callable(moment) else time.monotonic() - began > moment:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code in (-signal.SIGKILL, 0), err
    return None if code == 0 else assert_nothing_half_written(run)


@pytest.mark.slow
def test_kill_twice(finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    run = tmp_path / "runs" / "tiny"
    for moment in (_recorded(3), _saved(40)):
        print("killed:", _kill(arguments, run, moment))
    assert saved_steps(run)[-1] >= 40
    called = vpd(*arguments)
    assert called.code == 0 and called.out.splitlines()[-1] == str(run)
    assert_same_run(finished, run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_ten_times(seed: int, tmp_path: Path) -> None:
    cadence, evaluation = {"train_log_every": 5, "save_every": 25}, {"eval__every": 50, "eval__slow_every": 100}
    file = write_file(tmp_path, pd__steps=400, cadence=cadence, eval__slow_on_first_step=True, **evaluation)
    began = time.monotonic()
    code, _, err = finish(start("train", file, "--out-dir", tmp_path / "whole", "--quiet"))
    assert code == 0, err
    duration = time.monotonic() - began
    rng = random.Random(seed)
    moments: list[Moment | float] = [rng.uniform(0.0, 0.8 * duration) for _ in range(4)]
    moments += [_saving, _drawing, Path.exists, _recorded(rng.randrange(2, 60)), _saved(rng.choice([100, 200, 300]))]
    moments += [lambda run: (run / "checkpoints").exists()]
    rng.shuffle(moments)
    attempt, phases = 0, []
    for moment in moments:
        folder = tmp_path / f"attempt{attempt}"
        phase = _kill(("train", file, "--out-dir", folder, "--quiet"), folder / "tiny", moment)
        phases.append(phase or "finished before")
        print(f"killed at {moment if isinstance(moment, float) else 'an event'}: {phases[-1]}")
        if phase is None:
            assert_same_run(tmp_path / "whole" / "tiny", folder / "tiny")
            attempt += 1
    folder = tmp_path / f"attempt{attempt}"
    code, out, err = finish(start("train", file, "--out-dir", folder, "--quiet"))
    assert code == 0, err
    assert out.splitlines()[-1] == str(folder / "tiny")
    assert_same_run(tmp_path / "whole" / "tiny", folder / "tiny")
    assert len(set(phases)) >= 4, phases


@pytest.mark.slow
def test_what_a_killed_writer_left_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, runs = write_file(tmp_path, eval=None), tmp_path / "runs"
    with monkeypatch.context() as patch:
        _die_at(patch, Checkpoints, "save", 1, False)
        with pytest.raises(Died):
            decompose(file, steps=20, out_dir=runs, quiet=True)
    run = runs / "tiny"
    stale = 2**22 + os.getpid()  # no process has this number
    for name in (f".run.json.{stale}", f".metrics.jsonl.{stale}", f".report.html.{stale}"):
        (run / name).write_text("half")
    (run / "figures" / f".40.{stale}").mkdir(parents=True)
    decompose(file, steps=20, out_dir=runs, quiet=True)
    assert [p.name for p in run.rglob(".*")] == [".lock"]
