"""Trains several runs, each in a process of its own, several at a time, with a bar each."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vpd.config import RunConfig
from vpd.errors import FamilyError, NonFiniteError, Stopped, VpdError
from vpd.run_directory import RunDirectory
from vpd.signals import PATIENCE, SIGNALS, StopSignals

State = Literal["finished", "failed", "stopped"]
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Ended:
    """How one run of a family ended.

    Attributes:
        path: its run directory, which a run that failed early may lack.
        state: ``finished``, ``failed``, or ``stopped`` by a signal, in which case it may not have begun.
        said: why it failed, in one sentence; empty otherwise.
        seconds: from the start of its process to its end.
    """

    path: Path
    state: State
    said: str = ""
    seconds: float = 0.0


def train_family(configs: Sequence[RunConfig], labels: Sequence[str], jobs: int, quiet: bool) -> list[Ended]:
    """Train every run, ``jobs`` at a time; a run that fails leaves the others alone.

    A signal stops the runs that are under way, each of which saves what it has, and starts no other.

    Args:
        configs: each with its ``run_id`` and ``out_dir``.
        labels: what each is called beside its bar.
        jobs: processes at a time.
        quiet: no progress bars.

    Returns:
        How each ended, in the order given.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts, which _started must not meet
    workers = [_Worker(config) for config in configs]
    with StopSignals() as signals, signals.deferred() as stopped, _bars(quiet) as bars:
        tasks = [bars.add_task(label, total=config.pd.steps) for label, config in zip(labels, configs, strict=True)]
        try:
            _work_through(workers, jobs, stopped, lambda: _show(bars, tasks, workers))
        finally:
            for worker in workers:
                worker.stop()
    return [worker.ended or Ended(worker.path, "stopped") for worker in workers]


def _work_through(
    workers: Sequence["_Worker"], jobs: int, stopped: Callable[[], bool], show: Callable[[], None]
) -> None:
    """Start, watch and collect until every run has ended, or every one that was begun after a signal."""
    context = multiprocessing.get_context("spawn")  # JAX's threads don't survive a fork
    waiting = list(workers)
    while True:
        running = [worker for worker in workers if worker.is_running]
        if stopped():
            waiting.clear()
            for worker in running:
                worker.stop()
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            running[-1].start(context)
        if not running:
            return
        connection.wait([worker.mailbox for worker in running], WATCH_SECONDS)
        for worker in running:
            worker.collect()
        show()


class _Worker:
    """One run and the process that trains it."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.path = config, run_directory_of(config)
        self.ended: Ended | None = None
        self.told = False
        self._process: SpawnProcess | None = None
        self._began = 0.0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self.ended is None

    def start(self, context: SpawnContext) -> None:
        self._began = time.monotonic()
        self.mailbox, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_train_one, args=(self.config, theirs), daemon=True)
        # A signal that comes before the process can mind it waits until it can.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._process, self._asked = process, False

    def stop(self) -> None:
        """Ask once; the process saves what it has."""
        if self._process is not None and self.is_running and not self._asked:
            self._asked = True
            self._process.terminate()

    def collect(self) -> None:
        """Take what the process said at its end, if it has ended."""
        assert self._process is not None
        if not self.mailbox.poll():
            return
        try:
            state, said = self.mailbox.recv()
        except EOFError:
            state, said = "failed", ""
        self._process.join()
        if state == "failed" and not said:
            said = f"its process ended with exit code {self._process.exitcode}"
        self.mailbox.close()
        self.ended = Ended(self.path, state, said, time.monotonic() - self._began)


def _train_one(config: RunConfig, mailbox: Connection) -> None:
    """The process of one run: trains it and says how that ended."""
    try:
        with StopSignals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            from vpd.run import run

            state: State = "finished" if run(config, quiet=True, patience=PATIENCE).finished else "stopped"
            said = ""
    except (Stopped, KeyboardInterrupt):
        state, said = "stopped", ""
    except (VpdError, NonFiniteError, OSError) as error:
        state, said = "failed", " ".join(str(error).split())
    mailbox.send((state, said))


def refuse_unfinished(family: Sequence[Ended]) -> None:
    """Go on only where every run is finished.

    Raises:
        Stopped: a signal stopped some.
        FamilyError: some failed; the others are finished.
    """
    stopped = [end for end in family if end.state == "stopped"]
    if stopped:
        raise Stopped(
            f"stopped by a signal with {len(stopped)} of {len(family)} runs unfinished; "
            "the same command goes on from what was saved"
        )
    failed = [end for end in family if end.state == "failed"]
    if failed:
        named = "; ".join(f"{end.path}: {end.said}" for end in failed)
        raise FamilyError(f"{len(failed)} of {len(family)} runs failed, the others are finished. {named}")


def run_directory_of(config: RunConfig) -> Path:
    """The run directory of a configuration that names it in full."""
    assert config.run_id is not None
    return Path(config.out_dir or "runs").expanduser() / config.run_id


@contextmanager
def _bars(quiet: bool) -> Generator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *left, console=Console(stderr=True), disable=quiet) as bars:
        yield bars


def _show(bars: Progress, tasks: Sequence[TaskID], workers: Sequence[_Worker]) -> None:
    for task, worker in zip(tasks, workers, strict=True):
        ended = worker.ended
        step = worker.config.pd.steps if ended and ended.state == "finished" else last_step(worker.path)
        bars.update(task, completed=max(step, bars.tasks[task].completed))
        if ended is not None and not worker.told:
            worker.told = True
            if not bars.disable:
                bars.console.print(f"{ended.path} {ended.state} after {ended.seconds:.0f} s", highlight=False)


def last_step(path: Path) -> int:
    """The step of a run's last whole record; 0 before the first."""
    metrics = RunDirectory(path).metrics
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 8192))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0
