"""Products with trained matrices, with a backward pass that transposes the smaller operand."""

import math

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def trained_product(x: Float[Array, "*leading d"], W: Float[Array, "d m"]) -> Float[Array, "*leading m"]:
    """``x @ W`` for a W that is learned.

    The gradient of W contracts over all positions, for which one of the two activations has to be transposed. Autodiff
    always takes that of the output; here it is the one that costs fewer copies.
    """
    return x @ W


def _forward(
    x: Float[Array, "*leading d"], W: Float[Array, "d m"]
) -> tuple[Float[Array, "*leading m"], tuple[Float[Array, "*leading d"], Float[Array, "d m"]]]:
    return x @ W, (x, W)


def _backward(
    residuals: tuple[Float[Array, "*leading d"], Float[Array, "d m"]], g: Float[Array, "*leading m"]
) -> tuple[Float[Array, "*leading d"], Float[Array, "d m"]]:
    x, W = residuals
    return g @ W.T, weight_gradient(x, g).astype(W.dtype)


trained_product.defvjp(_forward, _backward)


def weight_gradient(x: Float[Array, "*leading d"], g: Float[Array, "*leading m"]) -> Float[Array, "d m"]:
    """``Σ_positions xᵀ g``."""
    d, m, positions = x.shape[-1], g.shape[-1], math.prod(x.shape[:-1])
    rows, columns = x.reshape(positions, d), g.reshape(positions, m)
    over_positions = (((0,), (0,)), ((), ()))
    if positions * d <= positions * m + d * m:
        return jax.lax.dot_general(rows, columns, over_positions)
    return jax.lax.dot_general(columns, rows, over_positions).T
