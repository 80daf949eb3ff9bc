"""SIGTERM and SIGINT: at once where there is nothing to save, after the current dispatch where there is."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vpd.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within it, a signal raises :class:`Stopped`; within :meth:`deferred`, it is only noted.

    A second SIGINT leaves at once. Outside the main thread, which alone gets signals, nothing is changed.
    """

    def __init__(self) -> None:
        """No signal has come yet."""
        self._asked = False
        self._deferring = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]  # what signal.signal returned

    @contextmanager
    def deferred(self) -> Generator[Callable[[], bool]]:
        """Note a signal instead of raising; what is yielded says whether one came."""
        self._deferring = True
        try:
            yield lambda: self._asked
        finally:
            self._deferring = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            os._exit(130)
        self._asked = True
        if not self._deferring:
            raise Stopped("stopped by a signal before there was anything to save; start again when you like")
