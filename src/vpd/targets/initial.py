"""The weights that language models begin with (Radford et al. 2019)."""

import math
from collections.abc import Collection, Mapping

import jax
from jaxtyping import Array, Float

from vpd.randomness import Seed, stream

STD = 0.02


def initial(name: str, shape: tuple[int, ...], seed: Seed, std: float = STD) -> Float[Array, "..."]:
    """Weights N(0, std²), drawn from a stream of their own."""
    return jax.random.normal(stream(seed, f"lm/{name}"), shape) * std


def initial_layers(
    shapes: Mapping[str, tuple[int, int]], into_stream: Collection[str], n_layers: int, seed: Seed
) -> dict[str, Float[Array, "n_layers d_in d_out"]]:
    """Every layer's matrices N(0, 0.02²); those whose output is added to the stream N(0, 0.02²/(2 n_layers))."""
    small = STD / math.sqrt(2 * n_layers)
    return {
        name: initial(name, (n_layers, *shape), seed, small if name in into_stream else STD)
        for name, shape in shapes.items()
    }
