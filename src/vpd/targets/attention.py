"""Causal attention, with rotary positions where they are asked for."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vpd.rotary import Scaling, rotate


def causal_attention(
    q: Float[Array, "B T d_q"],
    k: Float[Array, "B T d_kv"],
    v: Float[Array, "B T d_kv"],
    n_heads: int,
    n_kv_heads: int | None = None,
    base: float | None = 10000.0,
    scaling: Scaling | None = None,
) -> Float[Array, "B T d_q"]:
    """Heads are consecutive slices of the last axis; scale ``1/√d_head``, softmax in float32.

    Args:
        q: queries of ``n_heads`` heads.
        k: keys of ``n_kv_heads`` heads; query head i reads key head ``i // (n_heads / n_kv_heads)``.
        v: values likewise.
        n_heads: of the queries.
        n_kv_heads: of keys and values; None is as many.
        base: of the rotary frequencies; None rotates nothing.
        scaling: of the rotary frequencies.
    """
    q, k, v = by_heads(q, n_heads), by_heads(k, n_kv_heads or n_heads), by_heads(v, n_kv_heads or n_heads)
    if base is not None:
        q, k = rotate(q, base, scaling), rotate(k, base, scaling)
    with jax.numpy_dtype_promotion("standard"):  # it takes a softmax of bfloat16 in float32
        # Not every device has products of float16 that are summed in float32.
        wide = [x.astype(jnp.float32) if x.dtype == jnp.float16 else x for x in (q, k, v)]
        mixed = jax.nn.dot_product_attention(*wide, is_causal=True).astype(q.dtype)
    return mixed.reshape(*mixed.shape[:2], -1)


def attention_pattern(
    q: Float[Array, "B T d_q"],
    k: Float[Array, "B T d_kv"],
    n_heads: int,
    n_kv_heads: int | None = None,
    base: float | None = 10000.0,
    scaling: Scaling | None = None,
) -> Float[Array, "B heads T T"]:
    """Logarithm of the attention of every query on every key in float32, ``-inf`` on later ones; arguments as above."""
    q, k = by_heads(q, n_heads), by_heads(k, n_kv_heads or n_heads)
    if base is not None:
        q, k = rotate(q, base, scaling), rotate(k, base, scaling)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    earlier = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.log_softmax(jnp.where(earlier, scores, -jnp.inf), axis=-1)


def by_heads(x: Float[Array, "B T d"], n_heads: int) -> Float[Array, "B T heads d_head"]:
    """Consecutive slices of the last axis."""
    return x.reshape(*x.shape[:2], n_heads, -1)


def refuse_longer(batch: Int[Array, "B T"], max_len: int) -> None:
    """Refuse sequences for which a network has no positions, when its forward pass is traced.

    Raises:
        ValueError: where T is more than ``max_len``.
    """
    if batch.shape[1] > max_len:
        raise ValueError(f"a sequence of {batch.shape[1]} tokens is longer than the network's {max_len} positions")
