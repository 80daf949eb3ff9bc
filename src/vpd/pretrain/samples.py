"""Text that a language model writes, the same whenever it is asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

from vpd.decomposition import dense
from vpd.randomness import Seed, stream
from vpd.targets import LanguageModel
from vpd.targets.base import Pass


@partial(jax.jit, static_argnames="greedy")
def _continued(
    model: LanguageModel,
    tokens: Int32[Array, "n length"],
    given: Int32[Array, " n"],
    temperature: Array,
    seed: Integer[Array, ""],
    step: Int[Array, ""],
    greedy: bool,
) -> Int32[Array, "n length"]:
    """Fill every row from its first token that is not given; a function of (seed, step) and the row's number."""
    n, length = tokens.shape
    keys = jax.vmap(lambda i: jax.random.fold_in(stream(seed, "pretrain/samples", step), i))(jnp.arange(n))

    def write(t: Int[Array, ""], so_far: Int32[Array, "n length"]) -> Int32[Array, "n length"]:
        # Later tokens don't reach position t - 1, so a whole forward pass of the unfinished rows will do.
        logits = dense(model.forward(so_far, Pass()))[:, t - 1].astype(jnp.float32)
        if greedy:
            drawn = jnp.argmax(logits, axis=-1)
        else:
            drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row / temperature))(
                keys, logits
            )
        chosen = jnp.where(t < given, so_far[:, t], drawn.astype(jnp.int32))
        return so_far.at[:, t].set(chosen)

    return jax.lax.fori_loop(1, length, write, tokens)


def continuations(
    model: LanguageModel,
    prompts: list[Int32[np.ndarray, "..."]],
    length: int,
    temperature: float,
    seed: Seed,
    step: int,
) -> list[Int32[np.ndarray, "..."]]:
    """What the model writes after each prompt.

    Args:
        model: float32 parameters.
        prompts: token ids, at least one each.
        length: tokens that are written.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: of the draws.
        step: updates made so far, of which the draws are a function too.

    Returns:
        ``length`` token ids for each prompt.
    """
    given = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), int(given.max()) + length), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    divisor, number = jnp.asarray(temperature or 1.0, jnp.float32), jnp.asarray(step, jnp.int32)
    whole = _continued(
        model, jnp.asarray(rows), jnp.asarray(given), divisor, jnp.asarray(seed, jnp.uint32), number, temperature == 0
    )
    return [row[n : n + length] for row, n in zip(np.asarray(whole), given, strict=True)]
