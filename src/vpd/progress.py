"""What a person watches: one live line in a terminal, plain lines where output is piped."""

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

PLAIN_SECONDS = 15.0
ROOM_FOR_A_BAR = 110  # columns of a terminal; what is watched has to fit on the line beside it
Show = Literal["bar", "nothing", "json"]


def bar_unless(quiet: bool) -> Show:
    """What is shown of something that has no other choice than ``--quiet``."""
    return "nothing" if quiet else "bar"


# Of a number of units what is called with how many are done.
Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Meter:
    """Called with the number of steps made and what is watched.

    Attributes:
        show: shows them.
        name: shows what is being done; None for the work that is counted.
    """

    show: Callable[[int, Mapping[str, float]], None]
    name: Callable[[str | None], None] = lambda _: None

    def __call__(self, done: int, scalars: Mapping[str, float]) -> None:
        """Show them."""
        self.show(done, scalars)

    @contextmanager
    def doing(self, what: str) -> Generator[None]:
        """Say in a live line what holds the next step up."""
        self.name(what)
        try:
            yield
        finally:
            self.name(None)


def console() -> Console:
    """Standard error, where progress and notices go; results go to standard output."""
    return Console(stderr=True, highlight=False)


def say(sentence: str) -> None:
    """A notice on standard error, beside whatever moves there."""
    print(f"vpd: {sentence}", file=sys.stderr, flush=True)


def readings(scalars: Mapping[str, float]) -> str:
    """What is watched, on one line: ``loss 2.4e-03  recon 3.1e-04  L0 0.37``; what is not a number is left out."""
    return "  ".join(f"{name} {_reading(name, value)}" for name, value in scalars.items() if math.isfinite(value))


def _reading(name: str, value: float) -> str:
    return f"{value:.4g}" if name == "L0" or 0.1 <= abs(value) < 1e4 else f"{value:.2e}"


@contextmanager
def training_meter(
    steps: int, start: int, show: Show = "bar", what: str = "training", unit: str = "step", kind: str = "progress"
) -> Generator[Meter]:
    """A line with what is watched, steps a second and the time left.

    Args:
        steps: to make.
        start: made already.
        show: ``bar`` moves in a terminal, and where there is none writes a line every 15 s; ``json`` writes an object
            a line to standard output as often; ``nothing``.
        what: is done.
        unit: that is counted.
        kind: of the objects; of another than ``progress`` nothing is left to see at the end.
    """
    stays = kind == "progress"
    if show == "nothing":
        yield Meter(lambda done, scalars: None)
    elif show == "json":
        yield _timed(steps, start, partial(_print_json, kind), stays)
    elif sys.stderr.isatty():
        with _live(steps, start, what, unit, stays) as meter:
            yield meter
    else:
        yield _timed(steps, start, partial(_print_line, what, unit), stays)


def busy(what: str, show: Show) -> AbstractContextManager[object]:
    """Something that moves beside ``what`` in a terminal, for work whose length is not known."""
    return console().status(what) if show == "bar" and sys.stderr.isatty() else nullcontext()


@contextmanager
def _live(steps: int, start: int, what: str, unit: str, stays: bool) -> Generator[Meter]:
    on = console()
    columns = (
        TextColumn("{task.description}", table_column=Column(min_width=len("evaluating"))),
        *((BarColumn(bar_width=20),) if on.width >= ROOM_FOR_A_BAR else ()),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        TextColumn("{task.fields[read]}", style="bold"),
    )
    with Progress(*columns, console=on, transient=not stays) as bars:
        task = bars.add_task(what, total=steps, completed=start, read="", rate="")
        clock = _Rate(start)

        def show(done: int, scalars: Mapping[str, float]) -> None:
            bars.update(task, completed=done, read=readings(scalars), rate=_pace(clock(done), unit))

        yield Meter(show, lambda doing: bars.update(task, description=doing or what))


class _State(NamedTuple):
    """How far something is."""

    done: int
    steps: int
    rate: float | None
    scalars: Mapping[str, float]

    @property
    def seconds_left(self) -> float | None:
        return (self.steps - self.done) / self.rate if self.rate else None


def _timed(steps: int, start: int, tell: Callable[[_State], None], at_end: bool) -> Meter:
    """Tells now and then, and perhaps at the end."""
    clock, shown = _Rate(start), [time.monotonic()]

    def show(done: int, scalars: Mapping[str, float]) -> None:
        rate, now = clock(done), time.monotonic()
        if now - shown[0] >= PLAIN_SECONDS or (at_end and done >= steps):
            shown[0] = now
            tell(_State(done, steps, rate, scalars))

    return Meter(show)


def _print_line(what: str, unit: str, at: _State) -> None:
    left = "" if at.seconds_left is None else f"{at.seconds_left:.0f} s left"
    parts = (f"{what}: {unit} {at.done}/{at.steps}", _pace(at.rate, unit), left, readings(at.scalars))
    print("  ".join(filter(None, parts)), file=sys.stderr, flush=True)


def _print_json(kind: str, at: _State) -> None:
    told: dict[str, object] = {"kind": kind, "step": at.done, "steps": at.steps}
    told |= {"steps_per_second": at.rate, "seconds_left": at.seconds_left}
    told |= {name: value if math.isfinite(value) else None for name, value in at.scalars.items()}
    print(json.dumps(told), flush=True)


def watched(what: str, unit: str, quiet: bool = False) -> Watch:
    """As :func:`training_meter`, for work of which the number of units is found on the way."""

    @contextmanager
    def watch(total: int) -> Generator[Callable[[int], None]]:
        with training_meter(total, 0, bar_unless(quiet), what, unit) as meter:
            yield lambda done: meter(done, {})

    return watch


def unwatched(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Nobody looks."""
    return nullcontext(lambda done: None)


@contextmanager
def warmup_meter(steps: int, show: Show) -> Generator[Callable[[int], None]]:
    """As :func:`training_meter`, for what precedes the first step."""
    with training_meter(steps, 0, show, "warming up", kind="warmup") as meter:
        yield lambda done: meter(done, {})


@contextmanager
def target_meter(steps: int, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """As :func:`training_meter`, for a target that is trained before it is decomposed."""
    with training_meter(steps, 0, bar_unless(quiet), "training the target") as meter:
        yield lambda done: meter(done, {})


@contextmanager
def preparing_meter(size: int, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """As :func:`training_meter`, for text of so many bytes that is made into tokens."""
    with training_meter(-(-size // 1000), 0, bar_unless(quiet), "preparing data", "kB") as meter:
        yield lambda done: meter(-(-done // 1000), {})


def _pace(rate: float | None, unit: str) -> str:
    """Units a second; slow ones with two digits, nothing while it is not known."""
    if rate is None:
        return ""
    return f"{rate:.0f} {_several(unit)}/s" if rate >= 10 else f"{rate:.2g} {_several(unit)}/s"


def _several(unit: str) -> str:
    return unit if unit == "kB" else f"{unit}s"


class _Rate:
    """Steps a second since the first call, before which there may be a compilation; None at that call."""

    def __init__(self, start: int) -> None:
        self._steps, self._since = start, time.monotonic()
        self._first = True

    def __call__(self, done: int) -> float | None:
        now = time.monotonic()
        if self._first:
            self._first, self._steps, self._since = False, done, now
            return None
        return (done - self._steps) / max(now - self._since, 1e-9)
