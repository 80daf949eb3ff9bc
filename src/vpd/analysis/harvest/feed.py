"""What a run has to be harvested: its stream of batches, and how they are cut."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from vpd.analysis.harvest.settings import Settings
from vpd.analysis.run import Run
from vpd.config.run import Eval
from vpd.config.targets import TokenData
from vpd.data.feed import Batches, HostBatches
from vpd.errors import RunError, VpdError
from vpd.experiment import batches
from vpd.targets import Induction, LanguageModel

SPLITS = ("eval", "train")
# What the device hands over in one batch.
BATCH_BYTES = 1 << 28
BATCH_POSITIONS = 1 << 14
# Inputs that are no tokens are kept with their windows up to so many entries an example.
WIDEST = 4096

Feed = Callable[[int], Shaped[Array, "rows ..."]]


def vocabulary_of(run: Run) -> int | None:
    """Number of tokens; None where the inputs are no tokens."""
    target = run.experiment.target
    if isinstance(target, Induction):
        return int(target.wte.shape[0])
    return target.vocab_size if isinstance(target, LanguageModel) else None


def tokenizer_hash(run: Run) -> str | None:
    """Of the tokenizer of a language model; None where there is none, or it is not at hand."""
    if not isinstance(run.config.data, TokenData):
        return None
    try:
        return run.tokenizer.sha256
    except VpdError:
        return None


def settings_for(
    run: Run,
    positions: int,
    split: str = "eval",
    threshold: float = 0.1,
    seed: int = 0,
    n_random: int = 8,
    n_top: int = 8,
    context: int = 16,
    shards: int = 1,
) -> Settings:
    """A harvest of a run.

    Args:
        run: an opened run.
        positions: how many to read; whole batches are, and of a text each row once.
        split: ``eval`` or ``train``.
        threshold: a subcomponent fires where its lower causal importance is above it.
        seed: of the sampled windows.
        n_random: sampled windows a subcomponent.
        n_top: windows with the largest activations.
        context: positions on each side of a window's own.
        shards: in how many parts the batches are read.

    Raises:
        RunError: a split that there isn't, or a value that can't be used.
    """
    if split not in SPLITS:
        raise RunError(f"there is no split {split!r} of a run; write eval or train")
    if not 0 <= threshold < 1:
        raise RunError(f"a causal importance is never above {threshold:g}; give a --threshold from 0 to below 1")
    if min(positions, shards) < 1 or min(n_random, n_top, context) < 0:
        raise RunError("numbers of positions and shards are at least 1, of windows and their context at least 0")
    n, vocab = len(run.axis), vocabulary_of(run)
    draw = _draw(run, split, 1)
    available = draw.rows.rows if isinstance(draw, HostBatches) else None  # pyright: ignore[reportAttributeAccessIssue]  # rows of a prepared split
    length = math.prod(run.leading(_example(draw))[1:])
    wanted = min(-(-positions // length), available or positions)
    most = max(1, min(BATCH_BYTES // (length * (2 * n + (vocab or 0)) * 4), BATCH_POSITIONS // length))
    number = -(-wanted // most)
    return Settings(
        step=run.step,
        split=split,
        rows=wanted // number,
        batches=number,
        length=length,
        threshold=threshold,
        seed=seed,
        n_random=n_random,
        n_top=n_top,
        context=context,
        shards=shards,
        tokenizer=tokenizer_hash(run),
        vocab=vocab,
    )


def feed(run: Run, split: str, rows: int) -> Feed:
    """The batch of each number of a stream."""
    draw, seed = _draw(run, split, rows), run.config.pd.seed
    if isinstance(draw, HostBatches):
        return lambda number: draw(seed, number)
    made = jax.jit(draw)
    return lambda number: made(jnp.asarray(seed, jnp.uint32), jnp.asarray(number, jnp.int32))


def _draw(run: Run, split: str, rows: int) -> Batches:
    config = run.config
    if split == "eval" and config.eval is None:  # the split is looked at where it is read
        block = Eval(batch_size=rows, n_steps=1, every=1, slow_every=1, metrics=())
        config = config.model_copy(update={"eval": block})
    return batches(config, run.experiment.target, rows, split, data=run.experiment.data)


def _example(draw: Batches) -> Shaped[Array, "..."]:
    """A batch of zeros of the shape that is drawn."""
    if isinstance(draw, HostBatches):
        return jnp.zeros(draw.rows[0].shape, jnp.int32)
    shape = jax.eval_shape(draw, jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.int32))
    return jnp.zeros(shape.shape, shape.dtype)


def example_width(run: Run, split: str) -> int:
    """Entries of an example that are kept with a window; 0 where there are too many."""
    width = math.prod(_example(_draw(run, split, 1)).shape[1:])
    return width if width <= WIDEST else 0
