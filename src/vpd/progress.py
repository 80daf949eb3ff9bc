"""What a person watches: one live line in a terminal, plain lines where output is piped."""

import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0

# Of a number of units what is called with how many are done.
Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@runtime_checkable
class Meter(Protocol):
    """Called with the number of steps made and the scalars of the last one."""

    def __call__(self, done: int, scalars: Mapping[str, float]) -> None:
        """Show them."""
        ...


def console() -> Console:
    """Standard error, where progress and notices go; results go to standard output."""
    return Console(stderr=True, highlight=False)


def say(sentence: str) -> None:
    """A notice on standard error, beside whatever moves there."""
    print(f"vpd: {sentence}", file=sys.stderr, flush=True)


def summary(scalars: Mapping[str, float]) -> str:
    """Total and terms on one line, inactive terms left out."""
    losses = {n.removeprefix("loss/"): v for n, v in scalars.items() if n.startswith("loss/") and v == v}
    shown = {name: value for name, value in losses.items() if "/" not in name}
    return "  ".join(f"{_short(name)} {value:.2e}" for name, value in shown.items())


def _short(name: str) -> str:
    words = name.removesuffix("Loss").replace("Recon", "")
    return {"ImportanceMinimality": "minimality", "Faithfulness": "faithful", "": "recon"}.get(words, words)


@contextmanager
def training_meter(
    steps: int, start: int, quiet: bool = False, what: str = "training", unit: str = "step"
) -> Generator[Meter]:
    """A progress bar with losses, steps a second and the time left; every 15 s a line where there is no terminal."""
    if quiet:
        yield lambda done, scalars: None
    elif sys.stderr.isatty():
        with _live(steps, start, what, unit) as meter:
            yield meter
    else:
        yield _plain(steps, start, what, unit)


@contextmanager
def _live(steps: int, start: int, what: str, unit: str) -> Generator[Meter]:
    columns = (
        TextColumn(what),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("\n{task.fields[losses]}"), console=console()) as bars:
        task = bars.add_task(what, total=steps, completed=start, losses="", rate="")
        clock = _Rate(start)

        def show(done: int, scalars: Mapping[str, float]) -> None:
            bars.update(task, completed=done, losses=summary(scalars), rate=_pace(clock(done), unit))

        yield show


def _plain(steps: int, start: int, what: str, unit: str) -> Meter:
    clock, shown = _Rate(start), [time.monotonic()]

    def show(done: int, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - shown[0] < PLAIN_SECONDS and done < steps:
            return
        shown[0] = now
        rate = clock(done)
        left = (steps - done) / rate if rate else 0.0
        line = f"{what}: {unit} {done}/{steps}  {_pace(rate, unit)}  {left:.0f} s left  {summary(scalars)}"
        print(line, file=sys.stderr, flush=True)

    return show


def watched(what: str, unit: str, quiet: bool = False) -> Watch:
    """As :func:`training_meter`, for work of which the number of units is found on the way."""

    @contextmanager
    def watch(total: int) -> Generator[Callable[[int], None]]:
        with training_meter(total, 0, quiet, what, unit) as meter:
            yield lambda done: meter(done, {})

    return watch


def unwatched(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Nobody looks."""
    return nullcontext(lambda done: None)


@contextmanager
def target_meter(steps: int, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """As :func:`training_meter`, for a target that is trained before it is decomposed."""
    with training_meter(steps, 0, quiet, "training the target") as meter:
        yield lambda done: meter(done, {})


@contextmanager
def preparing_meter(size: int, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """As :func:`training_meter`, for text of so many bytes that is made into tokens."""
    with training_meter(-(-size // 1000), 0, quiet, "preparing data", "kB") as meter:
        yield lambda done: meter(-(-done // 1000), {})


def _pace(rate: float, unit: str) -> str:
    """Units a second; slow ones with two digits."""
    return f"{rate:.0f} {_several(unit)}/s" if rate >= 10 else f"{rate:.2g} {_several(unit)}/s"


def _several(unit: str) -> str:
    return unit if unit == "kB" else f"{unit}s"


class _Rate:
    """Steps a second since the start, without the first call, which may wait for a compilation."""

    def __init__(self, start: int) -> None:
        self._steps, self._since = start, time.monotonic()
        self._first = True

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        rate = (done - self._steps) / max(now - self._since, 1e-9)
        if self._first:
            self._first, self._steps, self._since = False, done, now
        return rate
