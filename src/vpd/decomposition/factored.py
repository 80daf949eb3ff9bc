"""An activation that is known as a sum of products, and is multiplied before it is formed."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Factored(eqx.Module):
    """``Σ_i z_i @ B_i``, for example the residual stream of a ResidMLP: ``x @ W_E`` and what each layer adds.

    Where the ranks are small beside the width, ``(z @ B) @ W = z @ (B @ W)`` takes a fraction of the operations. It is
    the same product in another order: nothing is approximated.

    Attributes:
        terms: pairs of coefficients ``z [*leading, rank]`` and a basis ``B [rank, d]``.
    """

    terms: tuple[tuple[Float[Array, "..."], Float[Array, "_rank _d"]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(*leading, d)``, as of the array that is not formed."""
        coefficients, basis = self.terms[0]
        return (*coefficients.shape[:-1], basis.shape[-1])

    def __matmul__(self, matrix: Float[Array, "d m"]) -> Float[Array, "..."]:
        """``[*leading, m]``, in the order that takes fewer operations."""
        positions, (d, m) = math.prod(self.shape[:-1]), matrix.shape
        ranks = sum(basis.shape[0] for _, basis in self.terms)
        if ranks * (d * m + positions * m) >= ranks * positions * d + positions * d * m:
            return self.dense() @ matrix
        products = [z @ (basis @ matrix) for z, basis in self.terms]
        return sum(products[1:], products[0])

    def dense(self) -> Float[Array, "..."]:
        """The activation itself, ``[*leading, d]``."""
        products = [z @ basis for z, basis in self.terms]
        return sum(products[1:], products[0])


Activation = Factored | Shaped[Array, "..."]
SiteInput = Factored | Float[Array, "*leading d_in"] | Int[Array, "*leading"]


def dense(x: Activation) -> Shaped[Array, "..."]:
    """An array, whatever an activation is known as."""
    return x.dense() if isinstance(x, Factored) else x


def plus(x: Activation, y: Activation) -> Activation:
    """``x + y``; of two sums of products the longer sum."""
    if isinstance(x, Factored) and isinstance(y, Factored):
        return Factored(x.terms + y.terms)
    return dense(x) + dense(y)


def scaled(x: Activation, factor: Float[Array, "..."]) -> Activation:
    """``x`` times a factor a position, ``[*leading, 1]``."""
    return Factored(tuple((z * factor, B) for z, B in x.terms)) if isinstance(x, Factored) else x * factor


def selected(where: Shaped[Array, "*leading"], x: Activation, y: Activation) -> Activation:
    """``x`` where the condition holds, else ``y``, position by position."""
    condition = where[..., None]
    if isinstance(x, Factored) and isinstance(y, Factored):
        taken = tuple((jnp.where(condition, z, 0.0), B) for z, B in x.terms)
        return Factored(taken + tuple((jnp.where(condition, 0.0, z), B) for z, B in y.terms))
    return jnp.where(condition, dense(x), dense(y))
