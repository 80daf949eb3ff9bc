"""Rotary positions, for targets and causal-importance functions that read sequences."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def rotate(x: Float[Array, "B T heads d_head"], base: float = 10000.0) -> Float[Array, "B T heads d_head"]:
    """Dimension j and j + d_head/2 turn by ``position · base^(−2j/d_head)`` (rotate-half); positions count from 0.

    The frequencies are constants.
    """
    length, half = x.shape[1], x.shape[3] // 2
    angles = np.arange(length)[:, None] * base ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(turn(angles)[:, None, :], x.dtype) for turn in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
