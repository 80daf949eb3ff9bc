"""A sink that fails or is slow: training goes on, one sentence says what is lost."""

import threading
import time
from collections.abc import Callable

import pytest

from vpd.records.aside import Aside
from vpd.records.sink import EvalRecord, Sink, TrainRecord

SECRET = "very-secret-0123456789"


class Listener:
    """A sink that fails where it is told to, and waits for leave before it takes a record."""

    def __init__(self, fails_at: str = "", may_go_on: threading.Event | None = None) -> None:
        self.fails_at, self.may_go_on = fails_at, may_go_on
        self.taken: list[TrainRecord | EvalRecord] = []
        self.closed: list[bool] = []
        self.threads: set[int] = set()
        self._maybe_fail("init")

    def train(self, record: TrainRecord) -> None:
        self._take(record, "train")

    def evaluation(self, record: EvalRecord) -> None:
        self._take(record, "evaluation")

    def close(self, failed: bool) -> None:
        self.closed.append(failed)
        self._maybe_fail("close")

    def _take(self, record: TrainRecord | EvalRecord, kind: str) -> None:
        self.threads.add(threading.get_ident())
        if self.may_go_on is not None:
            assert self.may_go_on.wait(10)
        self._maybe_fail(kind)
        self.taken.append(record)

    def _maybe_fail(self, where: str) -> None:
        if where == self.fails_at:
            raise ValueError(f"no {where}\nwith {SECRET} at https://me:{SECRET}@host.")


def _train(step: int) -> TrainRecord:
    return TrainRecord(step, {"loss/total": 1.0}, 0.0)


EVALUATION = EvalRecord(2, {"CI_L0/a": 1.0}, [], 0.0)


def _aside(open_sink: Callable[[], Sink], size: int = 100, seconds: float = 10.0) -> tuple[Aside, list[str]]:
    said: list[str] = []
    return Aside("Fake", open_sink, said.append, size, seconds), said


@pytest.mark.parametrize("failed", [False, True])
def test_records_arrive_in_order_and_in_another_thread(failed: bool) -> None:
    sink = Listener()
    aside, said = _aside(lambda: sink)
    records = [_train(0), _train(1), EVALUATION, _train(2)]
    for record in records:
        (aside.train if isinstance(record, TrainRecord) else aside.evaluation)(record)
    aside.close(failed)
    assert sink.taken == records
    assert sink.closed == [failed]
    assert sink.threads.isdisjoint({threading.get_ident()})
    assert said == []


@pytest.mark.parametrize(
    ("where", "taken", "closed"),
    [("init", 0, []), ("train", 0, [True]), ("evaluation", 3, [True]), ("close", 6, [False, True])],
)
def test_a_failure_is_said_once_and_ends_the_sink(
    where: str, taken: int, closed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    opened: list[Listener] = []

    def open_sink() -> Sink:
        opened.append(Listener.__new__(Listener))
        opened[0].__init__(where)
        return opened[0]

    aside, said = _aside(open_sink)
    for step in range(3):
        aside.train(_train(step))
    for _ in range(3):
        aside.evaluation(EVALUATION)
    aside.close(False)
    assert (len(opened[0].taken), opened[0].closed) == (taken, closed)
    (sentence,) = said
    assert sentence.startswith(f"Fake gets no more records (ValueError: no {where} with *** at https://***@host); ")
    assert "\n" not in sentence and SECRET not in sentence


def test_nothing_waits_for_a_slow_sink() -> None:
    """What does not fit the queue is lost, which is said once; the rest arrives in order."""
    leave, sink = threading.Event(), Listener()
    sink.may_go_on = leave
    aside, said = _aside(lambda: sink, size=5)
    aside.train(_train(0))
    while not sink.threads:  # it is at work on the first
        time.sleep(0.001)
    began = time.monotonic()
    for step in range(1, 1000):
        aside.train(_train(step))
    assert time.monotonic() - began < 1.0
    leave.set()
    aside.close(False)
    assert [record.step for record in sink.taken] == [0, 1, 2, 3, 4, 5]
    assert said == ["Fake can't keep up, so it lacks some records; metrics.jsonl has them all"]


def test_closing_has_a_time_limit() -> None:
    leave = threading.Event()
    sink = Listener(may_go_on=leave)
    aside, said = _aside(lambda: sink, size=3, seconds=0.2)
    for step in range(3):
        aside.train(_train(step))
    began = time.monotonic()
    aside.close(False)
    assert 0.1 < time.monotonic() - began < 5.0
    leave.set()
    (sentence,) = said
    assert "0.2 s" in sentence and "metrics.jsonl has them all" in sentence


def test_a_failure_during_closing_ends_the_wait() -> None:
    """Also where the queue is full and nobody takes from it any more."""
    leave = threading.Event()
    sink = Listener("train", leave)
    aside, said = _aside(lambda: sink, size=2, seconds=60.0)
    aside.train(_train(0))
    while not sink.threads:
        time.sleep(0.001)
    for step in range(2):
        aside.train(_train(step))
    threading.Timer(0.1, leave.set).start()
    began = time.monotonic()
    aside.close(False)
    assert time.monotonic() - began < 20.0
    assert len(said) == 1
