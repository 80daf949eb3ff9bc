"""Sinks that may be slow or fail, fed from one thread of their own: training neither waits for them nor stops."""

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from vpd.records.sink import EvalRecord, Sink, TrainRecord

QUEUE_SIZE = 1000
CLOSING_SECONDS = 30.0
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=//)[^/@\s]+@")


class Aside:
    """A sink that hands every record to several others, which are opened, fed and closed by a thread.

    The first failure of each is said in one sentence and ends it; a full queue loses records, which is said once.
    """

    def __init__(
        self,
        opening: Mapping[str, Callable[[], Sink]],
        say: Callable[[str], None],
        size: int = QUEUE_SIZE,
        seconds: float = CLOSING_SECONDS,
    ) -> None:
        """Start the thread.

        Args:
            opening: how each sink is opened, under the name by which it is spoken of.
            say: told in one sentence what is lost.
            size: records that may wait.
            seconds: that :meth:`close` may take.
        """
        self._opening, self._say, self._seconds = opening, say, seconds
        self._sinks: dict[str, Sink] = {}
        self._waiting: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(size)
        self._failed = False
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)
        self._thread.start()

    def train(self, record: TrainRecord) -> None:
        """Leave the record for the thread."""
        self._leave(lambda sink: sink.train(record))

    def evaluation(self, record: EvalRecord) -> None:
        """Leave the record for the thread."""
        self._leave(lambda sink: sink.evaluation(record))

    def close(self, failed: bool) -> None:
        """Wait until everything is written, though not for longer than was said."""
        self._failed = failed
        until = time.monotonic() + self._seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._seconds)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._say(
                f"{_listed(self._opening)} had not taken all records after {self._seconds:g} s of waiting, and what is "
                "left is lost to them; metrics.jsonl has every record"
            )

    def _leave(self, call: Callable[[Sink], None]) -> None:
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            if self._lost == 0:
                self._say(
                    f"{_listed(self._opening)} can't keep up, so records are left out there; "
                    "metrics.jsonl has every record"
                )
            self._lost += 1

    def _work(self) -> None:
        for name, open_one in self._opening.items():
            self._attempt(name, lambda name=name, open_one=open_one: self._sinks.update({name: open_one()}))
        while (call := self._waiting.get()) is not None:
            for name, sink in list(self._sinks.items()):
                self._attempt(name, lambda call=call, sink=sink: call(sink))
        for name, sink in list(self._sinks.items()):
            self._attempt(name, lambda sink=sink: sink.close(self._failed))

    def _attempt(self, name: str, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # whatever a service's client may raise: it must not end a run
            self._say(
                f"{name} gets no more records ({_reason(error)}); the run goes on, and metrics.jsonl has them all"
            )
            dropped = self._sinks.pop(name, None)
            if dropped is not None:
                with suppress(Exception):  # it has failed already, and that was said
                    dropped.close(failed=True)


def _listed(names: Mapping[str, object]) -> str:
    return " and ".join(names)


def _reason(error: Exception) -> str:
    """What an error says, in one line, without anything that the environment or an address keeps secret."""
    text = " ".join(str(error).split())
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = _IN_ADDRESS.sub("***@", text)[:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
