"""Rotary positions, for targets and causal-importance functions that read sequences."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Scaling:
    """How Llama 3.1 stretches its rotary frequencies beyond the length it was first trained on.

    Wavelengths over ``original_length / low_freq_factor`` are stretched by ``factor``, those under
    ``original_length / high_freq_factor`` are left, and between them it goes linearly in the inverse wavelength.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


def frequencies(half: int, base: float, scaling: Scaling | None = None) -> Float[np.ndarray, " half"]:
    """Angle a position of each pair of dimensions, ``base^(−j/half)``, constants in float64."""
    plain = base ** (-np.arange(half) / half)
    if scaling is None:
        return plain
    turns = scaling.original_length * plain / (2 * math.pi)  # within the original length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling.factor)


def rotate(
    x: Float[Array, "B T heads d_head"], base: float = 10000.0, scaling: Scaling | None = None
) -> Float[Array, "B T heads d_head"]:
    """Dimension j and j + d_head/2 turn by ``position · base^(−2j/d_head)`` (rotate-half); positions count from 0.

    The frequencies are constants.
    """
    length, half = x.shape[1], x.shape[3] // 2
    angles = np.arange(length)[:, None] * frequencies(half, base, scaling)
    cos, sin = (jnp.asarray(turn(angles)[:, None, :], x.dtype) for turn in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
