"""SIGTERM and SIGINT: at once where there is nothing to save, after the current dispatch where there is."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vpd.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED, INTERRUPTED = 75, 130
PATIENCE = 3.0
NOTHING_SAVED = "stopped by a signal before there was anything to save; start again when you like"


class StopSignals:
    """Within it, a signal raises :class:`Stopped`; within :meth:`deferred`, it is only noted.

    A second SIGINT leaves at once. Outside the main thread, which alone gets signals, nothing is changed.

    Python hands a signal to the main thread between two of its instructions, and compiling a program is one. With
    ``patience``, a thread leaves the process in its place: at a second SIGINT, and where there is nothing to save
    after so many seconds.
    """

    def __init__(self, patience: float | None = None) -> None:
        """No signal has come yet.

        Args:
            patience: seconds; None where the process is not ours to end.
        """
        self._asked = threading.Event()
        self._deferring = False
        self._before: dict[int, object] = {}
        self._watch = None if patience is None else _Watch(self._asked, lambda: self._deferring, patience)

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            if self._watch is not None:
                self._watch.begin()
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
            self._tell, sys.unraisablehook = sys.unraisablehook, self._ask_again
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]  # what signal.signal returned
        if self._before:
            sys.unraisablehook = self._tell
        if self._before and self._watch is not None:
            self._watch.end()

    @contextmanager
    def deferred(self) -> Generator[Callable[[], bool]]:
        """Note a signal instead of raising; what is yielded says whether one came."""
        self._deferring = True
        try:
            yield self._asked.is_set
        finally:
            self._deferring = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set() and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        self._asked.set()
        if not self._deferring:
            raise Stopped(NOTHING_SAVED)

    def _ask_again(self, lost: "sys.UnraisableHookArgs") -> None:
        """What is raised within a callback of the garbage collector ends there: the signal is to come once more."""
        if isinstance(lost.exc_value, Stopped):
            # From here it would be raised within the callback once more.
            threading.Timer(0.01, _thread.interrupt_main, [signal.SIGTERM]).start()
        else:
            self._tell(lost)


class _Watch:
    """A thread that the system tells of signals at once, whatever the main thread is in."""

    def __init__(self, taken: threading.Event, deferring: Callable[[], bool], patience: float) -> None:
        self._taken, self._deferring, self._patience = taken, deferring, patience

    def begin(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        """Until the other end is closed: a byte is the number of a signal."""
        came = 0
        while heard := os.read(self._read, 1):
            if heard[0] not in SIGNALS:
                continue
            came += 1
            if came > 1 and heard[0] == signal.SIGINT:
                os._exit(INTERRUPTED)
            if came == 1:
                threading.Thread(target=self._wait, name="patience", daemon=True).start()

    def _wait(self) -> None:
        if not self._taken.wait(self._patience) and not self._deferring():
            print(f"vpd: {NOTHING_SAVED}", file=sys.stderr, flush=True)
            os._exit(STOPPED)
