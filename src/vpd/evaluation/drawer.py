"""Has a run's figures drawn in a process of its own, for which the run never waits but at its end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from vpd.evaluation.plates import Plate, leave_plates, waiting_file, waiting_steps

MOST_WAITING = 4
COMMAND = ("-P", "-m", "vpd.evaluation.drawer_process")


class Drawer:
    """Draws evaluations in the order in which they come.

    A process, since drawing in a thread would hold the interpreter while training wants it, and could take the run down
    with it. What fails is said in one sentence, each reason once; evaluations that come faster than they are drawn push
    out the oldest that wait.
    """

    def __init__(self, figures: Path, say: Callable[[str], None], drawn: Callable[[int, Path], None]) -> None:
        """Nothing is started before there is something to draw.

        Args:
            figures: folder of the run's figures.
            say: told in one sentence what is lost.
            drawn: called with the step and its folder once that is there, from another thread.
        """
        self._figures, self._say, self._drawn = figures.absolute(), say, drawn
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._process: subprocess.Popen[str] | None = None
        self._hearing: threading.Thread | None = None
        self._said: set[str] = set()
        self._is_closing = False

    def go_on(self) -> None:
        """Have drawn what a run that was cut short has left."""
        for step in waiting_steps(self._figures):
            self._tell(step)

    def draw(self, step: int, plates: Sequence[Plate], beside: Mapping[str, Mapping[str, object]]) -> None:
        """Leave an evaluation's plates to be drawn, with what lies beside them; takes milliseconds, never fails."""
        try:
            leave_plates(self._figures, step, plates, beside)
        except OSError as error:
            self._lose(f"can't be put down ({error.strerror or error})")
            return
        self._tell(step)

    def settle(self, seconds: float) -> None:
        """Wait until everything is drawn, but no longer than so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting, seconds):
                self._lose(f"were not drawn within {seconds:g} s; the figures of step {self._waiting[-1]} wait")

    def close(self) -> None:
        """End the process; what it has not drawn waits in the run directory."""
        with self._changed:
            self._is_closing = True
            process, hearing = self._process, self._hearing
        if process is not None and hearing is not None:
            process.kill()
            hearing.join()

    def _tell(self, step: int) -> None:
        with self._changed:
            if step not in self._waiting:
                self._waiting.append(step)
            if len(self._waiting) > MOST_WAITING:
                # The first of them is in hand.
                late = self._waiting.pop(1)
                waiting_file(self._figures, late).unlink(missing_ok=True)
                self._lose("come faster than they are drawn, and some are left out")
            if self._process is None:
                self._start()
            else:
                self._write(self._process, [step])

    def _start(self) -> None:
        """A process for all that waits; it finds its modules where this one does."""
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed in _hear)
        try:
            process = subprocess.Popen(
                [sys.executable, *COMMAND, str(self._figures)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # a signal from the terminal is the run's to answer
                text=True,
            )
        except OSError as error:
            errors.close()
            self._waiting.clear()
            self._lose(f"can't be drawn ({error.strerror or error})")
            return
        self._process = process
        self._write(process, self._waiting)
        self._hearing = threading.Thread(target=self._hear, args=(process, errors), name="figures", daemon=True)
        self._hearing.start()

    def _write(self, process: "subprocess.Popen[str]", steps: Sequence[int]) -> None:
        assert process.stdin is not None
        # A few bytes, for which a pipe always has room; where the process has died, who hears it says so.
        with suppress(OSError):
            process.stdin.write("".join(f"{step}\n" for step in steps))
            process.stdin.flush()

    def _hear(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        """Note what is drawn; where the process dies, give up what it was at and go on with the rest in another."""
        assert process.stdout is not None
        for line in process.stdout:
            step = int(line)
            self._drawn(step, self._figures / str(step))
            with self._changed:
                self._waiting = [other for other in self._waiting if other != step]
                self._changed.notify_all()
        code = process.wait()
        process.stdout.close()
        for draft in self._figures.glob(f".*.{process.pid}"):
            shutil.rmtree(draft, ignore_errors=True)
        with self._changed, errors:
            assert process.stdin is not None
            with suppress(OSError):  # what it was told last may lie in the pipe
                process.stdin.close()
            self._process = None
            if self._is_closing:
                return
            if self._waiting:
                failed = self._waiting.pop(0)
                waiting_file(self._figures, failed).unlink(missing_ok=True)
                self._lose(f"of step {failed} are not drawn ({_reason(code, errors)})")
            if self._waiting:
                self._start()
            self._changed.notify_all()

    def _lose(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(f"figures {what}; the run goes on")


def _reason(code: int, errors: IO[str]) -> str:
    """Why a process has died: the last line it wrote, or its signal."""
    if code < 0:
        return f"their process died of {signal.Signals(-code).name}"
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1][:300] if lines else f"their process ended with code {code}"
