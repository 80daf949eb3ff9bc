"""Random tokens that repeat after a while, on which only induction can predict what comes next."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


def repeated_tokens(key: Key[Array, ""], batch: int, vocab: int, seq_len: int) -> Int[Array, "batch seq_len"]:
    """A start token, then a run of distinct random tokens over and over.

    The run's length is uniform between a quarter and half of ``seq_len``, so that its repetition can't be found by
    position: the second half is repeated in every sequence.

    Args:
        key: random key.
        batch: sequences.
        vocab: number of tokens, the start token 0 among them; more than ``seq_len // 2``.
        seq_len: at least 8.
    """
    key_tokens, key_period = jax.random.split(key)
    scores = jax.random.uniform(key_tokens, (batch, vocab - 1))
    run = 1 + jax.lax.top_k(scores, seq_len // 2)[1]
    period = jax.random.randint(key_period, (batch, 1), seq_len // 4, seq_len // 2 + 1)
    tokens = jnp.take_along_axis(run, jnp.arange(seq_len - 1) % period, axis=1)
    return jnp.concatenate([jnp.zeros((batch, 1), tokens.dtype), tokens], axis=1)


def seen_before(tokens: Int[Array, "batch seq_len"]) -> Bool[Array, "batch seq_len"]:
    """Where a token has occurred earlier in its sequence: there the next one can be told by induction."""
    same = tokens[:, :, None] == tokens[:, None, :]
    return jnp.any(same & jnp.tril(jnp.ones(same.shape[1:], bool), -1), axis=-1)
