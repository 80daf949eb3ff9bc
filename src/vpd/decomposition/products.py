"""Products with trained matrices, with a backward pass that transposes the smaller operand."""

import math

import jax
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float


@jax.custom_vjp
def trained_product(x: Float[Array, "*leading d"], W: Float[Array, "d m"]) -> Float[Array, "*leading m"]:
    """``x @ W`` for a W that is learned.

    The gradient of W contracts over all positions, for which one of the two activations has to be transposed. Autodiff
    always takes that of the output; here it is the one that costs fewer copies.
    """
    return x @ W


# What a gradient needs is kept where that gradient is asked for: W for that of x, and x for that of W.
_Residuals = tuple[Float[Array, "*leading d"] | None, Float[Array, "d m"] | None]


def _forward(x: CustomVJPPrimal, W: CustomVJPPrimal) -> tuple[Float[Array, "*leading m"], _Residuals]:
    return x.value @ W.value, (x.value if W.perturbed else None, W.value if x.perturbed else None)


def _backward(
    residuals: _Residuals, g: Float[Array, "*leading m"]
) -> tuple[Float[Array, "*leading d"] | None, Float[Array, "d m"] | None]:
    x, W = residuals
    return None if W is None else g @ W.T, None if x is None else weight_gradient(x, g)


trained_product.defvjp(_forward, _backward, symbolic_zeros=True)


def weight_gradient(x: Float[Array, "*leading d"], g: Float[Array, "*leading m"]) -> Float[Array, "d m"]:
    """``Σ_positions xᵀ g``."""
    d, m, positions = x.shape[-1], g.shape[-1], math.prod(x.shape[:-1])
    rows, columns = x.reshape(positions, d), g.reshape(positions, m)
    over_positions = (((0,), (0,)), ((), ()))
    if positions * d <= positions * m + d * m:
        return jax.lax.dot_general(rows, columns, over_positions)
    return jax.lax.dot_general(columns, rows, over_positions).T
