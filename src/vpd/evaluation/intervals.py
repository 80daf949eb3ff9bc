"""Bootstrap intervals: how far a mean over the batches of an evaluation would move with other batches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
# The middle part of the resampled means: 95 %.
TAILS = (0.025, 0.975)
# Fewer batches say nothing of how batches differ.
FEWEST = 3


@dataclass(frozen=True)
class Mean:
    """A mean over positions or elements, batch by batch.

    Attributes:
        total: sum in each batch.
        count: what it is divided by.
    """

    total: Float[np.ndarray, " batches"]
    count: Float[np.ndarray, " batches"]

    @property
    def value(self) -> float:
        """``Σ total / Σ count``: batches weigh as much as there is in them."""
        return float(np.sum(self.total, dtype=np.float64) / np.sum(self.count, dtype=np.float64))


def bootstrap(means: Mapping[str, Mean], seed: int) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of each mean under resampling of batches (Efron 1979); the same for the same seed.

    Args:
        means: by name, all over the same batches.
        seed: of the run.

    Returns:
        ``{name: (low, high)}``; empty for fewer than three batches.
    """
    batches = min((mean.total.size for mean in means.values()), default=0)
    if batches < FEWEST:
        return {}
    draws = np.random.default_rng(seed).multinomial(batches, np.full(batches, 1 / batches), size=RESAMPLES)
    found: dict[str, tuple[float, float]] = {}
    for name, mean in means.items():
        values = (draws @ mean.total.astype(np.float64)) / (draws @ mean.count.astype(np.float64))
        low, high = np.quantile(values, TAILS)
        found[name] = (float(low), float(high))
    return found
