"""A sink that may be slow or fail, fed from a thread of its own: training neither waits for it nor stops with it."""

import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vpd.records.sink import EvalRecord, Sink, TrainRecord

QUEUE_SIZE = 1000
CLOSING_SECONDS = 30.0
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=//)[^/@\s]+@")


class Aside:
    """Hands records to another sink, which a thread opens, feeds and closes.

    A thread for each sink, so that one that waits for a network holds up no other. The first failure is said in one
    sentence and ends the sink; a full queue loses records, and that is said once.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        say: Callable[[str], None],
        size: int = QUEUE_SIZE,
        seconds: float = CLOSING_SECONDS,
    ) -> None:
        """Start the thread.

        Args:
            name: by which the sink is spoken of.
            open_sink: opens it.
            say: told in one sentence what is lost.
            size: records that may wait.
            seconds: that :meth:`close` may take.
        """
        self._name, self._open, self._say, self._seconds = name, open_sink, say, seconds
        self._waiting: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(size)
        self._failed = self._is_behind = self._has_ended = False
        self._thread = threading.Thread(target=self._work, name=f"records to {name}", daemon=True)
        self._thread.start()

    def train(self, record: TrainRecord) -> None:
        """Leave the record for the thread."""
        self._leave(lambda sink: sink.train(record))

    def evaluation(self, record: EvalRecord) -> None:
        """Leave the record for the thread."""
        self._leave(lambda sink: sink.evaluation(record))

    def figures(self, step: int, folder: Path) -> None:
        """Leave the drawings for the thread."""
        self._leave(lambda sink: sink.figures(step, folder))

    def close(self, failed: bool) -> None:
        """Wait until everything is written, but no longer than ``seconds``."""
        self._failed = failed
        until = time.monotonic() + self._seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=0 if self._has_ended else self._seconds)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive() and not self._has_ended:
            self._say(
                f"{self._name} had not taken every record after {self._seconds:g} s of waiting, and may lack the last "
                "ones; metrics.jsonl has them all"
            )

    def _leave(self, call: Callable[[Sink], None]) -> None:
        if self._has_ended:
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            if not self._is_behind:
                self._is_behind = True
                self._say(f"{self._name} can't keep up, so it lacks some records; metrics.jsonl has them all")

    def _work(self) -> None:
        sink: Sink | None = None
        try:
            sink = self._open()
            while (call := self._waiting.get()) is not None:
                call(sink)
            sink.close(self._failed)
        except Exception as error:  # whatever the client of a service may raise: it must not end a run
            self._has_ended = True
            self._say(
                f"{self._name} gets no more records ({_reason(error)}); the run goes on, and metrics.jsonl has them all"
            )
            self._drain()
            if sink is not None:
                with suppress(Exception):  # it has failed already, and that was said
                    sink.close(failed=True)

    def _drain(self) -> None:
        """Let go of what waits, so that nobody waits to add to it."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()


def _reason(error: Exception) -> str:
    """What an error says, in one line, without anything that the environment or an address keeps secret."""
    text = " ".join(str(error).split())
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = _IN_ADDRESS.sub("***@", text)[:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
