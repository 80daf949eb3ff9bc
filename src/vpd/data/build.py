"""From a run file's `data` block to batches, each a function of (seed, step)."""

from collections.abc import Callable

from jaxtyping import Array, Int, Shaped

from vpd.config.targets import FeatureData
from vpd.data.features import sparse_features
from vpd.data.induction import repeated_tokens
from vpd.randomness import Seed, stream

Draw = Callable[[Seed, Int[Array, ""]], Shaped[Array, "..."]]


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
