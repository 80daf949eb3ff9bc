"""How far a masked output is from the clean one, per position, in float32 (method.md §4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def squared_error(
    clean: Float[Array, "*leading out"], masked: Float[Array, "*leading out"]
) -> Float[Array, "*leading"]:
    """Mean over the output's entries of the squared difference: the divergence of toys."""
    return jnp.mean(jnp.square(clean.astype(jnp.float32) - masked.astype(jnp.float32)), axis=-1)


def kl(clean: Float[Array, "*leading vocab"], masked: Float[Array, "*leading vocab"]) -> Float[Array, "*leading"]:
    """KL(clean ‖ masked) of the softmaxes, in nats: the divergence of language models."""
    log_p = jax.nn.log_softmax(clean.astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(masked.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
