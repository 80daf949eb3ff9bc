"""What a sink of records is, and the two kinds of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class TrainRecord:
    """Scalars of one training step, already on the host.

    Attributes:
        step: the step from ``step`` to ``step + 1``.
        values: losses, gradient norms and rates by key.
        seconds: since training began or was gone on with.
    """

    step: int
    values: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class EvalRecord:
    """What one evaluation found.

    Attributes:
        step: updates made when it was taken.
        metrics: scalars by key.
        verdict: its rows; empty where nothing is known of the target.
        seconds: since training began or was gone on with.
        intervals: 95 % bootstrap intervals of the metrics that are means over batches.
        health: vital signs, which diagnoses go by.
    """

    step: int
    metrics: Mapping[str, float]
    verdict: Sequence[object]
    seconds: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    health: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class Sink(Protocol):
    """Takes the records of one run in order, then is closed."""

    def train(self, record: TrainRecord) -> None:
        """Take the scalars of a step."""
        ...

    def evaluation(self, record: EvalRecord) -> None:
        """Take what an evaluation found."""
        ...

    def figures(self, step: int, folder: Path) -> None:
        """Take the drawings of an evaluation, which come after its record and from another thread."""
        ...

    def close(self, failed: bool) -> None:
        """Write what is left; ``failed`` where the run ended with an error."""
        ...
