"""Norms of language models, computed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*leading d"], weight: Float[Array, " d"], eps: float) -> Float[Array, "*leading d"]:
    """``x / √(mean x² + eps) · weight`` (Zhang & Sennrich 2019)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


def layer_norm(
    x: Float[Array, "*leading d"], weight: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*leading d"]:
    """``(x − mean) / √(variance + eps) · weight + bias`` (Ba et al. 2016)."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * scale).astype(x.dtype) * weight + bias
