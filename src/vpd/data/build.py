"""Batches that are made on the device, each a function of (seed, step)."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Int, Key, Shaped

from vpd.config.targets import FeatureData
from vpd.data.features import sparse_features
from vpd.data.induction import repeated_tokens
from vpd.errors import RunError
from vpd.randomness import Seed, stream

Draw = Callable[[Seed, Int[Array, ""]], Shaped[Array, "..."]]
Sampler = Callable[[Key[Array, ""], int], Shaped[Array, "..."]]


def feature_batches(data: FeatureData, n_features: int, batch_size: int, name: str, low: float = 0.0) -> Draw:
    """``(seed, step) → [batch_size, n_features]`` on one named stream.

    Args:
        data: probability and kind of sparse features.
        n_features: width of an example.
        batch_size: examples a batch.
        name: of the stream: ``train``, ``eval`` or ``pretrain``.
        low: smallest feature value.
    """

    def draw(seed: Seed, step: Int[Array, ""]) -> Shaped[Array, "..."]:
        key = stream(seed, f"data/{name}", step)
        return sparse_features(key, (batch_size,), n_features, data.feature_probability, data.data_generation_type, low)

    return draw


def sequence_batches(vocab: int, seq_len: int, batch_size: int, name: str) -> Draw:
    """``(seed, step) → [batch_size, seq_len]`` of repeated random tokens on one named stream."""

    def draw(seed: Seed, step: Int[Array, ""]) -> Shaped[Array, "..."]:
        return repeated_tokens(stream(seed, f"data/{name}", step), batch_size, vocab, seq_len)

    return draw


def sampled_batches(sampler: Sampler | None, example: jax.ShapeDtypeStruct, batch_size: int, name: str) -> Draw:
    """Batches of a function of a random key and a number of examples, on one named stream.

    Args:
        sampler: ``sampler(key, n)``, n examples along the first axis, a JAX function; without one nothing is drawn.
        example: shape and type of the batch that the target was traced with.
        batch_size: examples a batch.
        name: of the stream: ``train`` or ``eval``.

    Raises:
        RunError: batches of another shape or type than the example's.
    """

    def draw(seed: Seed, step: Int[Array, ""]) -> Shaped[Array, "..."]:
        if sampler is None:
            raise RunError("a traced target has no batches of its own; give data=..., a function of a key and a number")
        return sampler(stream(seed, f"data/{name}", step), batch_size)

    if sampler is not None:
        found = jax.eval_shape(draw, 0, 0)
        wanted = (batch_size, *example.shape[1:])
        if getattr(found, "shape", None) != wanted or found.dtype != example.dtype:
            raise RunError(
                f"data(key, {batch_size}) gives {getattr(found, 'dtype', type(found).__name__)}"
                f"{list(getattr(found, 'shape', ()))}, and the target was traced with {example.dtype}{list(wanted)}; "
                "return examples like the one it was traced with, as many as asked for"
            )
    return draw
