"""Learning-rate schedules: linear warm-up, then constant, linear or cosine (method.md §6)."""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Number = TypeVar("Number", float, Array)


@dataclass(frozen=True)
class Schedule:
    """``int(total · warmup_pct)`` steps of linear warm-up from 0, then a decay whose last step has the final value."""

    start_val: float
    warmup_pct: float = 0.0
    final_val_frac: float = 1.0
    fn_type: Literal["constant", "linear", "cosine"] = "constant"

    def __call__(self, step: Int[Array, ""], total: int) -> Float[Array, ""]:
        """Value at a traced step, in float32."""
        warmup, decay = self._lengths(total)
        progress = (step - warmup) / max(decay - 1, 1)
        cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
        value = self._decayed(progress, cosine, decay)
        return self.start_val * jnp.where(step < warmup, step / max(warmup, 1), value)

    def on_host(self, step: int, total: int) -> float:
        """The same value in float64, for records."""
        warmup, decay = self._lengths(total)
        if step < warmup:
            return self.start_val * step / warmup
        progress = (step - warmup) / max(decay - 1, 1)
        return self.start_val * float(self._decayed(progress, (1 + math.cos(math.pi * progress)) / 2, decay))

    def _lengths(self, total: int) -> tuple[int, int]:
        warmup = int(total * self.warmup_pct)
        return warmup, total - warmup

    def _decayed(self, progress: Number, cosine: Number, decay: int) -> Number | float:
        if decay <= 1 or self.fn_type == "constant":
            return 1.0
        rest = cosine if self.fn_type == "cosine" else 1 - progress
        return self.final_val_frac + (1 - self.final_val_frac) * rest


def first_active_step(start_frac: float, total: int) -> int:
    """The first step t with ``t / total ≥ start_frac``."""
    steps = np.arange(math.floor(start_frac * total) - 1, math.floor(start_frac * total) + 3)
    return int(max(0, steps[steps / total >= start_frac][0]))
