"""From a run file's `data` block to batches, each a function of (seed, step)."""

from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import Array, Int, Key, Shaped

from vpd.config.targets import FeatureData, TokenData
from vpd.data.features import sparse_features
from vpd.data.induction import repeated_tokens
from vpd.data.prepare import Options, Watch
from vpd.data.sources import Wanted
from vpd.data.text import checked_folder
from vpd.data.tokens import TokenBatches, token_batches
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


def prepared_folder(data: TokenData, watch: Watch, vocab_size: int | None = None, evaluated: bool = True) -> Path:
    """The folder of token shards that a run reads; text is prepared into the user's cache when first asked for.

    Args:
        data: the data block.
        watch: what shows the progress of so many bytes.
        vocab_size: of the model, where it is known.
        evaluated: whether the evaluation split is read too.

    Raises:
        VpdError: where there is no such text or tokenizer.
        RunError: where a prepared folder is not what the block asks for.
    """
    files = (data.data_files,) if isinstance(data.data_files, str) else data.data_files or ()
    wanted = Wanted(
        data.dataset_name,
        data.column_name,
        data.is_tokenized,
        data_files=files,
        revision=data.revision,
        streaming=data.streaming,
    )
    options = Options(data.max_seq_len, data.train_split, data.eval_split)
    splits = (data.train_split, data.eval_split) if evaluated else (data.train_split,)
    return checked_folder(wanted, options, data.tokenizer_name, splits, vocab_size, watch)


def text_batches(
    data: TokenData,
    folder: Path,
    batch_size: int,
    seed: int,
    name: str,
    process_index: int = 0,
    process_count: int = 1,
) -> TokenBatches:
    """Batches of a prepared folder on one named stream: those of the evaluation split for ``eval``.

    Args:
        data: the data block.
        folder: from :func:`prepared_folder`.
        batch_size: sequences a step, over all processes.
        seed: the run's seed.
        name: ``train`` or ``eval``.
        process_index: which share of each batch.
        process_count: shares of each batch.
    """
    split = data.eval_split if name == "eval" else data.train_split
    each_epoch = data.shuffle_each_epoch
    return token_batches(
        folder, split, data.max_seq_len, batch_size, seed, name, each_epoch, process_index, process_count
    )
