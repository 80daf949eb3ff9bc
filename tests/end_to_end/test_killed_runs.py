"""A run that is killed and started again ends where an uninterrupted one ends, to the bit."""

import fcntl
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_language_model import written
from tiny_run import (
    Vpd,
    assert_nothing_half_written,
    assert_same_run,
    finish,
    replaced,
    saved_steps,
    start,
    write_file,
)

from vpd import run as a_run
from vpd.config import read_document
from vpd.config.document import write_document
from vpd.evaluation import plates
from vpd.face import decompose
from vpd.recorder import Recorder
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
    ("while evaluating", Recorder, "evaluate", 3, True),
    ("before the plates lie there", plates.os, "replace", 3, True),
    ("after the last save", Checkpoints, "save", 6, False),
    ("after the last evaluation", Recorder, "evaluate", 4, False),
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


KILLS = 25
SIGNALLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SPREAD = ("anywhere", "compiling", "warming up", "stepping", "saving", "evaluating")


def _toy(_: Path, folder: Path) -> Path:
    """Long enough to be killed in every part of it."""
    return write_file(
        folder,
        pd__steps=400,
        pd__faithfulness_warmup_steps=3000,
        cadence={"train_log_every": 5, "save_every": 25},
        eval__every=50,
        eval__slow_every=200,  # no more sets of figures than may wait: which are left out then is a matter of speed
        eval__slow_on_first_step=True,
    )


def _language_model(models: Path, folder: Path) -> Path:
    """A LlamaSimpleMLP on text with a persistent adversary, whose batches are read on the host."""
    evaluation = {"eval__every": 20, "eval__slow_every": 40}
    cadence = {"train_log_every": 2, "save_every": 10}
    document = read_document(written(models, folder, pd__steps=80, pd__faithfulness_warmup_steps=2000, cadence=cadence))
    path = folder / "lm.yaml"
    path.write_text(write_document(replaced(dict(document), evaluation)))
    return path


class _Moments:
    """When to kill next: random in time, or a random while after an event."""

    def __init__(self, seed: int, duration: float) -> None:
        self._rng, self._duration = random.Random(seed), duration

    def __call__(self, run: Path, where: str) -> Callable[[], bool]:
        if where == "anywhere":
            return self._after(lambda: True, self._rng.uniform(0, self._duration))
        last = saved_steps(run)[-1] if saved_steps(run) else -1
        events: dict[str, tuple[Callable[[], bool], float]] = {
            "compiling": (lambda: (run / "run.json").exists() and self._is_held(run), 0.5),
            "warming up": (lambda: self._is_held(run), 2.5),
            "stepping": (lambda: bool(saved_steps(run)) and saved_steps(run)[-1] > last, 0.3),
            "saving": (lambda: _saving(run), 0.02),
            "evaluating": (lambda: _drawing(run), 0.2),
        }
        event, spread = events[where]
        return self._after(event, self._rng.uniform(0, spread))

    def choose(self) -> tuple[str, int]:
        """Where, and with which signal."""
        return self._rng.choice(SPREAD), self._rng.choice(SIGNALLED)

    @staticmethod
    def _is_held(run: Path) -> bool:
        """Whether a process that has begun anew holds the run."""
        lock = run / ".lock"
        return lock.exists() and time.time() - lock.stat().st_mtime < 60 and _locked(lock)

    @staticmethod
    def _after(event: Callable[[], bool], seconds: float) -> Callable[[], bool]:
        since: list[float] = []

        def is_now() -> bool:
            if not since and event():
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] >= seconds

        return is_now


def _locked(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("write", "seed"), [(_toy, 0), (_language_model, 1)], ids=["toy", "language model"])
def test_twenty_five_kills(write: Callable[[Path, Path], Path], seed: int, place: Path, tmp_path: Path) -> None:
    """SIGKILL, SIGTERM and SIGINT anywhere: each run that was killed ends as the one that was not, to the bit."""
    file = write(place, tmp_path)
    command = ("train", file, "--run-id", "run", "--quiet", "--out-dir")
    for folder in ("first", "whole"):  # the second with a filled cache, as all that follow
        began = time.monotonic()
        code, _, err = finish(start(*command, tmp_path / folder))
        assert code == 0, err
    moments, whole = _Moments(seed, time.monotonic() - began), tmp_path / "whole" / "run"
    kills, attempt, told = 0, 0, []
    while kills < KILLS:
        run = tmp_path / f"attempt{attempt}" / "run"
        where, number = moments.choose()
        killed = _killed(start(*command, run.parent), moments(run, where), number)
        if killed is None:
            assert_same_run(whole, run)
            attempt += 1
            continue
        kills += 1
        told.append(f"{where}, {signal.Signals(number).name}, exit {killed}: {assert_nothing_half_written(run)}")
        print(told[-1])
    run = tmp_path / f"attempt{attempt}" / "run"
    code, out, err = finish(start(*command, run.parent))
    assert code == 0 and out.splitlines()[-1] == str(run), err
    assert_same_run(whole, run)
    assert [p for p in run.rglob(".*") if p.name != ".lock"] == []
    assert len({line.split(",")[0] for line in told}) >= 5, told
    assert len({line.split(", ")[1] for line in told}) == 3, told


def _killed(process: "subprocess.Popen[str]", is_now: Callable[[], bool], number: int) -> int | None:
    """Send a signal when it is time; the exit code, None where the run was finished first."""
    while process.poll() is None and not is_now():
        time.sleep(0.0005)
    if process.poll() is None:
        process.send_signal(number)
    code, _, err = finish(process)
    assert "Traceback" not in err or "/src/vpd/" not in err, err  # Python itself may be interrupted before
    allowed = {
        signal.SIGKILL: (-signal.SIGKILL,),
        signal.SIGTERM: (75, -signal.SIGTERM),
        signal.SIGINT: (75, -signal.SIGINT),
    }
    assert code == 0 or code in allowed[signal.Signals(number)], err
    return None if code == 0 else code


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
