"""The SPD gates, one tiny MLP per subcomponent on a scalar, evaluated in chunks of positions with their own backward.

Autodiff writes several ``[positions, C, hidden]`` arrays to memory; on toys that is most of a step. Here a chunk stays
in the cache, and the backward pass recomputes it from the scalars.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 128

Weights = Float[Array, "C hidden"]


@jax.custom_vjp
def gates(a: Float[Array, "*leading C"], w_in: Weights, b_in: Weights, w_out: Weights) -> Float[Array, "*leading C"]:
    """``Σ_h w_out · gelu(a · w_in + b_in)`` for every position and subcomponent, with the exact erf-GELU.

    Args:
        a: component activations ``x @ V``.
        w_in: ``[C, hidden]``.
        b_in: ``[C, hidden]``.
        w_out: ``[C, hidden]``.
    """
    return _forward(a, w_in, b_in, w_out)[0]


Residuals = tuple[Float[Array, "..."], Weights, Weights, Weights]


def _forward(
    a: Float[Array, "*leading C"], w_in: Weights, b_in: Weights, w_out: Weights
) -> tuple[Float[Array, "*leading C"], Residuals]:
    def chunk(_: None, x: Float[Array, "C n"]) -> tuple[None, Float[Array, "C n"]]:
        u = _preactivation(x, w_in, b_in)
        return None, jnp.sum(u * _normal_cdf(u) * w_out[..., None], axis=1)

    z = jax.lax.scan(chunk, None, _split(a))[1]
    return _join(z, a.shape), (a, w_in, b_in, w_out)


def _backward(
    residuals: Residuals, g: Float[Array, "*leading C"]
) -> tuple[Float[Array, "*leading C"], Weights, Weights, Weights]:
    a, w_in, b_in, w_out = residuals
    x_chunks, g_chunks = _split(a), _split(g)
    slope_weight = w_in * w_out

    def chunk(sums: tuple[Array, Array, Array], given: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], Array]:
        x, g = given
        u = _preactivation(x, w_in, b_in)
        cdf = _normal_cdf(u)
        slope = cdf + u * jnp.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))
        g_x = g * jnp.sum(slope * slope_weight[..., None], axis=1)
        g_slope = g[:, None, :] * slope
        # Vectors over the chunk's positions are summed once, after the last chunk.
        sums = (sums[0] + g_slope * x[:, None, :], sums[1] + g_slope, sums[2] + g[:, None, :] * (u * cdf))
        return sums, g_x

    zero = jnp.zeros((*w_in.shape, x_chunks.shape[-1]), a.dtype)
    sums, g_a = jax.lax.scan(chunk, (zero, zero, zero), (x_chunks, g_chunks))
    by_x, plain, hidden = (jnp.sum(s, axis=-1) for s in sums)
    return _join(g_a, a.shape), by_x * w_out, plain * w_out, hidden


gates.defvjp(_forward, _backward)


def _preactivation(x: Float[Array, "C n"], w: Weights, b: Weights) -> Float[Array, "C hidden n"]:
    return x[:, None, :] * w[..., None] + b[..., None]


def _normal_cdf(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * (1 + jax.lax.erf(u * (1 / math.sqrt(2))))


def _split(a: Float[Array, "*leading C"]) -> Float[Array, "chunks C n"]:
    """Positions to chunks, padded with zeros; a chunk takes every k-th position, so it holds some of every shard."""
    flat = a.reshape(-1, a.shape[-1])
    chunks = -(-flat.shape[0] // CHUNK)
    n = -(-flat.shape[0] // chunks)
    flat = jnp.pad(flat, ((0, chunks * n - flat.shape[0]), (0, 0)))
    return flat.reshape(n, chunks, -1).transpose(1, 2, 0)


def _join(z: Float[Array, "chunks C n"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The inverse of :func:`_split`."""
    chunks, C, n = z.shape
    flat = z.transpose(2, 0, 1).reshape(chunks * n, C)
    return flat[: math.prod(shape[:-1])].reshape(shape)
