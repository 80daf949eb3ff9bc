"""Causal attention with rotary positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(
    x: Float[Array, "*leading T heads d_head"], base: float = 10000.0
) -> Float[Array, "*leading T heads d_head"]:
    """Rotary embedding (rotate-half): dimension j turns with ``j + d_head / 2`` by ``position · base^(−2j/d_head)``.

    The frequencies are constants; positions count from 0.
    """
    T, d_head = x.shape[-3], x.shape[-1]
    frequencies = base ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angles = jnp.arange(T, dtype=jnp.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_attention(
    q: Float[Array, "*leading T d"], k: Float[Array, "*leading T d"], v: Float[Array, "*leading T d"], n_heads: int
) -> Float[Array, "*leading T d"]:
    """Heads are consecutive slices of the last axis; softmax in float32, scale ``1/√d_head``."""
    split = (*q.shape[:-1], n_heads, q.shape[-1] // n_heads)
    q, k, v = rotate(q.reshape(split)), rotate(k.reshape(split)), v.reshape(split)
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) * split[-1] ** -0.5
    T = split[-3]
    seen = jnp.tril(jnp.ones((T, T), bool))
    pattern = jax.nn.softmax(jnp.where(seen, scores.astype(jnp.float32), -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", pattern, v).reshape(*split[:-2], -1)
