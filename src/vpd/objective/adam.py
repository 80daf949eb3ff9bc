"""Adam's direction, shared by parameters (descent) and sources (ascent).

Ours and not optax's because ``1 − βⁿ`` in float32 loses up to five digits in the first steps, where the trajectories of
the reference are compared.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Tree = TypeVar("Tree")


def adam_direction(
    gradients: Tree, m: Tree, v: Tree, n: Int[Array, ""], betas: tuple[float, float], eps: float
) -> tuple[Tree, Tree, Tree]:
    """``m̂ / (√v̂ + eps)`` and the new raw moments (Kingma & Ba 2015, algorithm 1).

    Args:
        gradients: pytree of arrays.
        m: first moments before this update.
        v: second moments before this update.
        n: number of updates including this one.
        betas: decay rates of the moments.
        eps: added after the square root.
    """
    beta1, beta2 = betas
    m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), v, gradients)
    m_scale, v_scale = bias_correction(beta1, n), bias_correction(beta2, n)
    direction = jax.tree.map(lambda m, v: m * m_scale / (jnp.sqrt(v * v_scale) + eps), m, v)
    return direction, m, v


def bias_correction(beta: float, n: Int[Array, ""]) -> Float[Array, ""]:
    """``1 / (1 − βⁿ)``; expm1 keeps the digits that the difference loses in float32."""
    if beta == 0:
        return jnp.ones(())
    return -1 / jnp.expm1(n.astype(jnp.float32) * math.log(beta))
