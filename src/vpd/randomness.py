"""Named random streams: every draw is a function of (seed, step, stream name)."""

import zlib

import jax
from jaxtyping import Array, Int, Integer, Key

Seed = int | Integer[Array, ""]


def stream(seed: Seed, name: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of one named stream at one step.

    No random state is stored anywhere: a resumed run draws what the uninterrupted one would have drawn.

    Args:
        seed: the run's seed.
        name: what the draw is for, for example ``"data"`` or ``"StochasticReconLoss"``.
        step: the number of updates made so far; may be traced.
    """
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)
