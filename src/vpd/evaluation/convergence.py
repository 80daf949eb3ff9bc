"""Has a run settled? The slope of what it records over the last part of its learning, not the last point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vpd.objective.schedule import Schedule

# The last part of the learning, measured by summed learning rates: with a rate that falls to 0 the last steps move
# nothing, so that a slope over steps would call every such run settled.
LAST_PART = 0.1
FEWEST = 4
# Standard errors by which a slope must differ from none.
ERRORS = 2.0
GRID = 2000


@dataclass(frozen=True)
class Trend:
    """What a least-squares line says of a series over a window.

    Attributes:
        change: over the window, relative to its mean; negative where the series falls.
        error: standard error of the change.
        first: step at which the window begins.
        last: step at which it ends.
    """

    change: float
    error: float
    first: int
    last: int

    @property
    def significant(self) -> bool:
        """Whether the change is more than its noise."""
        return abs(self.change) > ERRORS * self.error


def progress(steps: Sequence[int], rate: Schedule, total: int) -> Float[np.ndarray, " n"]:
    """The part of a run's learning that lies before each step: Σ of the learning rates so far over Σ of all."""
    grid = np.linspace(0, max(0, total - 1), min(total, GRID))
    rates = np.array([rate.on_host(round(t), total) for t in grid])
    summed = np.concatenate([[0.0], np.cumsum(rates)])
    if summed[-1] <= 0:
        return np.asarray(steps, np.float64) / total
    return np.interp(np.asarray(steps, np.float64), np.linspace(0, total, summed.size), summed / summed[-1])


def trend(steps: Sequence[int], values: Sequence[float], rate: Schedule, total: int) -> Trend | None:
    """The trend over the last tenth of the learning, of at least four points; None where there are fewer.

    Args:
        steps: of the points, rising.
        values: finite ones.
        rate: schedule of the components' learning rate.
        total: steps of the run.
    """
    x, y = progress(steps, rate, total), np.asarray(values, np.float64)
    # What was before the first update tells nothing of how it ends.
    trained = np.asarray(steps) > 0
    inside = trained & (x >= x[-1] - LAST_PART) if x.size else trained
    if np.sum(inside) < FEWEST:
        inside = trained & (np.arange(x.size) >= x.size - FEWEST)
    if np.sum(inside) < FEWEST or not np.all(np.isfinite(y[inside])):
        return None
    x, y, at = x[inside], y[inside], np.asarray(steps)[inside]
    width, middle = float(x[-1] - x[0]), float(np.mean(np.abs(y)))
    if width <= 0 or middle == 0:
        return Trend(0.0, 0.0, int(at[0]), int(at[-1]))
    slope, offset = np.polyfit(x, y, 1)
    rest = y - (slope * x + offset)
    spread = float(np.sum((x - x.mean()) ** 2))
    error = float(np.sqrt(np.sum(rest**2) / (x.size - 2) / spread))
    return Trend(float(slope) * width / middle, error * width / middle, int(at[0]), int(at[-1]))
