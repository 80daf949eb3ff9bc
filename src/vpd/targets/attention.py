"""Causal attention with rotary positions."""

import jax
from jaxtyping import Array, Float

from vpd.rotary import rotate


def causal_attention(
    q: Float[Array, "B T d"], k: Float[Array, "B T d"], v: Float[Array, "B T d"], n_heads: int
) -> Float[Array, "B T d"]:
    """Heads are consecutive slices of the last axis; softmax in float32, scale ``1/√d_head``."""
    B, T, d = q.shape
    q, k, v = (x.reshape(B, T, n_heads, d // n_heads) for x in (q, k, v))
    return jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True).reshape(B, T, d)
