"""What a person watches: one live line in a terminal, plain lines in a pipe, objects for a program."""

import io
import json
import sys
import time

import pytest
from rich.console import Console

from vpd import progress
from vpd.progress import Show, busy, training_meter, warmup_meter

WATCHED = {"loss": 2.4e-3, "recon": float("nan"), "L0": 0.3712}


def looked_at(monkeypatch: pytest.MonkeyPatch, terminal: bool, width: int = 140, seconds: float = 0.0) -> io.StringIO:
    """Standard error: a terminal, or a file where a line is due every so many seconds."""
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(error, "isatty", lambda: terminal)
    monkeypatch.setattr(
        progress, "console", lambda: Console(file=error, force_terminal=True, width=width, highlight=False)
    )
    monkeypatch.setattr(progress, "PLAIN_SECONDS", seconds)
    return error


def shown(show: Show, monkeypatch: pytest.MonkeyPatch, terminal: bool = False, width: int = 140) -> str:
    """What ten steps after five show on standard error."""
    error = looked_at(monkeypatch, terminal, width)
    with training_meter(15, 5, show) as meter:
        for done in (5, 10, 15):
            meter(done, WATCHED)
    return error.getvalue()


@pytest.mark.parametrize(("width", "bar"), [(140, True), (100, False)])
def test_a_live_line(width: int, bar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    last = shown("bar", monkeypatch, terminal=True, width=width).split("\r")[-1]
    assert "15/15" in last and "steps/s" in last and "left" in last
    assert "loss 2.40e-03  L0 0.3712" in last and "recon" not in last  # what is not a number is left out
    assert ("━" in last) == bar


def test_plain_lines_where_output_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, last = shown("bar", monkeypatch).splitlines()
    assert first == "training: step 5/15  loss 2.40e-03  L0 0.3712"
    assert last.startswith("training: step 15/15  ") and "steps/s  0 s left" in last
    assert "\x1b" not in first + last and "\r" not in first + last


def test_objects_for_a_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("json", monkeypatch) == ""
    first, _, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["steps_per_second"] is None and first["seconds_left"] is None
    assert (last["kind"], last["step"], last["steps"], last["seconds_left"]) == ("progress", 15, 15, 0)
    assert (last["loss"], last["recon"], last["L0"]) == (2.4e-3, None, 0.3712)


def test_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("nothing", monkeypatch) == "" and capsys.readouterr().out == ""
    error = looked_at(monkeypatch, terminal=True)
    with warmup_meter(2, "nothing") as made, busy("compiling", "nothing"):
        made(2)
    assert error.getvalue() == "" and capsys.readouterr().out == ""


def test_what_holds_the_next_step_up(monkeypatch: pytest.MonkeyPatch) -> None:
    error = looked_at(monkeypatch, terminal=True)
    with training_meter(15, 5, "bar") as meter:
        with meter.doing("evaluating"):
            until = time.monotonic() + 10
            while "evaluating" not in error.getvalue() and time.monotonic() < until:
                time.sleep(0.01)  # it is drawn ten times a second
        meter(15, WATCHED)
    meanwhile, last = error.getvalue().split("\r")[-2:]
    assert "evaluating" in error.getvalue() and "5/15" in meanwhile
    assert "training" in last and "15/15" in last


def test_a_warm_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted like steps, and of a short one nothing is said where lines stay."""
    for seconds, lines in ((0.0, 2), (60.0, 0)):
        error = looked_at(monkeypatch, terminal=False, seconds=seconds)
        for show in ("bar", "json"):
            with warmup_meter(400, show) as made:
                made(1)
                made(400)
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(t["kind"], t["step"], t["steps"]) for t in told] == [("warmup", 1, 400), ("warmup", 400, 400)][:lines]
        plain = error.getvalue().splitlines()
        assert len(plain) == lines and all(line.startswith("warming up: step ") for line in plain)
