"""Squashings of CI preactivations z, with the ties and the custom backward of method.md §3."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ALPHA = 0.01

Squashing = Callable[[Float[Array, "*any"]], Float[Array, "*any"]]


def _clamp01(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    # An explicit where passes the whole gradient at exactly 0 and 1; a library clip may split ties.
    return jnp.where(z < 0, 0.0, jnp.where(z > 1, 1.0, z))


def normal(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Logistic function."""
    return jax.nn.sigmoid(z)


def hard(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """``clip(z, 0, 1)``; the whole gradient at exactly 0 and 1."""
    return _clamp01(z)


def leaky_hard(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """``αz`` up to 0, ``min(z, 1)`` above. As a *configured* type, ``leaky_hard`` means the lower/upper pair."""
    return jnp.where(z > 0, jnp.where(z > 1, 1.0, z), ALPHA * z)


def upper_leaky_hard(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """``1 + α(z − 1)`` above 1, else ``clip(z, 0, 1)``; ordinary autodiff. Feeds the sparsity losses."""
    return jnp.where(z > 1, 1 + ALPHA * (z - 1), jnp.where(z < 0, 0.0, z))


@jax.custom_vjp
def lower_leaky_hard(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Forward ``clip(z, 0, 1)``; backward leaks ``α·g`` below 0 where ``g < 0`` (it would raise z). Feeds the masks."""
    return _clamp01(z)


def _lower_forward(z: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    return _clamp01(z), z


def _lower_backward(z: Float[Array, "*any"], g: Float[Array, "*any"]) -> tuple[Float[Array, "*any"]]:
    leak = jnp.where(g < 0, ALPHA * g, 0.0)
    return (jnp.where(z <= 0, leak, jnp.where(z <= 1, g, 0.0)).astype(g.dtype),)


lower_leaky_hard.defvjp(_lower_forward, _lower_backward)


def swish_hard(z: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """A smooth clip made of swishes of steepness 10 around z − 0.5."""
    x = z - 0.5

    def rising(u: Float[Array, "*any"]) -> Float[Array, "*any"]:
        return u * jax.nn.sigmoid(10 * u)

    def falling(u: Float[Array, "*any"]) -> Float[Array, "*any"]:
        return u * jax.nn.sigmoid(-10 * u)

    return 0.5 + 0.5 * (falling(x - 0.5) - rising(x - 0.5) + rising(x + 0.5) - falling(x + 0.5))


SQUASHINGS: dict[str, Squashing] = {
    "normal": normal,
    "hard": hard,
    "leaky_hard": leaky_hard,
    "lower_leaky_hard": lower_leaky_hard,
    "upper_leaky_hard": upper_leaky_hard,
    "swish_hard": swish_hard,
}


def squash_pair(sigmoid_type: str) -> tuple[Squashing, Squashing]:
    """The (lower, upper) squashings of a configured type: a pair for ``leaky_hard``, else one function twice."""
    if sigmoid_type == "leaky_hard":
        return lower_leaky_hard, upper_leaky_hard
    return SQUASHINGS[sigmoid_type], SQUASHINGS[sigmoid_type]
