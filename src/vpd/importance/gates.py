"""The SPD gates, one tiny MLP per subcomponent on a scalar, evaluated in chunks of positions with their own backward.

Autodiff writes several ``[positions, C, hidden]`` arrays to memory; on toys that is most of a step. Here a chunk stays
in the cache, and the backward pass recomputes it from the scalars. Sums are matrix products on purpose: XLA on CPU
would evaluate the gates inside a plain sum one operation at a time, twice as slowly.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 128
STRIPES = 16

Weights = Float[Array, "C hidden"]
Sums = tuple[Weights, Weights, Weights]


def gates(a: Float[Array, "*leading C"], w_in: Weights, b_in: Weights, w_out: Weights) -> Float[Array, "*leading C"]:
    """``Σ_h w_out · gelu(a · w_in + b_in)`` for every position and subcomponent, with the exact erf-GELU.

    Computed in float32, whatever the dtype of the arguments.

    Args:
        a: component activations ``x @ V``.
        w_in: ``[C, hidden]``.
        b_in: ``[C, hidden]``.
        w_out: ``[C, hidden]``.
    """
    x, *weights = (array.astype(jnp.float32) for array in (a, w_in, b_in, w_out))
    return _join(_gates(_split(x), *weights), a.shape).astype(a.dtype)


@jax.custom_vjp
def _gates(x: Float[Array, "chunks C n"], w_in: Weights, b_in: Weights, w_out: Weights) -> Float[Array, "chunks C n"]:
    def chunk(_: None, x: Float[Array, "C n"]) -> tuple[None, Float[Array, "C n"]]:
        u = _preactivation(x, w_in, b_in)
        hidden = u * (0.5 * (1 + jax.lax.erf(u * (1 / math.sqrt(2)))))
        return None, _dot("ch,chn->cn", w_out, hidden)

    return jax.lax.scan(chunk, None, x)[1]


Residuals = tuple[Float[Array, "chunks C n"], Weights, Weights, Weights]


def _forward(
    x: Float[Array, "chunks C n"], w_in: Weights, b_in: Weights, w_out: Weights
) -> tuple[Float[Array, "chunks C n"], Residuals]:
    return _gates(x, w_in, b_in, w_out), (x, w_in, b_in, w_out)


def _backward(
    residuals: Residuals, g: Float[Array, "chunks C n"]
) -> tuple[Float[Array, "chunks C n"], Weights, Weights, Weights]:
    x_chunks, w_in, b_in, w_out = residuals

    def chunk(sums: Sums, given: tuple[Array, Array]) -> tuple[Sums, Float[Array, "C n"]]:
        x, g = given
        hidden, slope = gelu_and_slope(_preactivation(x, w_in, b_in))
        g_x = g * _dot("ch,chn->cn", w_in * w_out, slope)
        parts = (_dot("chn,cn->ch", slope, g * x), _dot("chn,cn->ch", slope, g), _dot("chn,cn->ch", hidden, g))
        return (sums[0] + parts[0], sums[1] + parts[1], sums[2] + parts[2]), g_x

    zero = jnp.zeros_like(w_in)
    (by_x, plain, hidden), g_x = jax.lax.scan(chunk, (zero, zero, zero), (x_chunks, g))
    return g_x, by_x * w_out, plain * w_out, hidden


_gates.defvjp(_forward, _backward)


def _preactivation(x: Float[Array, "C n"], w: Weights, b: Weights) -> Float[Array, "C hidden n"]:
    return x[:, None, :] * w[..., None] + b[..., None]


def _dot(subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    # Accelerators would otherwise round the factors to fewer digits.
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


# Φ(−t) / exp(−t²/2) for t ≥ 0, that is Mills' ratio over √(2π), as Σ_k MILLS[k] s^(k+1) with s = 1 / (1 + POLE·t).
# Fitted in float64 to scipy's erfcx on [0, 6.5] so that exp(−t²/2) · max(1, t) times the error is equal-ripple
# (Lawson's iteration); that largest error is 1.1e-8. As t grows s goes to 0, so that nothing overflows.
POLE = 0.28
MILLS = (0.11672915, 0.06622934, 0.27197279, -0.24067006, 0.39206742, -0.10632866)


def gelu_and_slope(u: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    """``u Φ(u)`` and its derivative ``Φ(u) + u φ(u)`` from one exponential.

    In float32 each is within 2e-7 of the exact one, the value beyond 1 within 2.5e-7 of its size.
    """
    t = jnp.abs(u)
    s = 1 / (1 + POLE * t)
    ratio = jnp.zeros_like(s)
    for coefficient in reversed(MILLS):
        ratio = (ratio + coefficient) * s
    density = jnp.exp(-0.5 * u * u)
    tail = density * (ratio - t * (1 / math.sqrt(2 * math.pi)))  # Φ(−t) − t φ(t)
    slope = jnp.where(u < 0, tail, 1 - tail)
    # Not u Φ(u), whose Φ the compiler would compute again: the slope is at hand.
    return u * (slope - u * (density * (1 / math.sqrt(2 * math.pi)))), slope


def _split(a: Float[Array, "*leading C"]) -> Float[Array, "chunks C n"]:
    """Positions to chunks, padded with zeros.

    A chunk takes a run of neighbours out of each of ``STRIPES`` equal parts of the positions, so that it holds some of
    every shard.
    """
    C = a.shape[-1]
    chunks, run = _chunking(math.prod(a.shape[:-1]))
    flat = a.reshape(-1, C)
    flat = jnp.pad(flat, ((0, STRIPES * chunks * run - flat.shape[0]), (0, 0)))
    return flat.reshape(STRIPES, chunks, run, C).transpose(1, 3, 0, 2).reshape(chunks, C, STRIPES * run)


def _join(z: Float[Array, "chunks C n"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The inverse of :func:`_split`."""
    chunks, C, n = z.shape
    flat = z.reshape(chunks, C, STRIPES, n // STRIPES).transpose(2, 0, 3, 1).reshape(chunks * n, C)
    return flat[: math.prod(shape[:-1])].reshape(shape)


def _chunking(positions: int) -> tuple[int, int]:
    """The number of chunks, and the length of the runs that they are made of."""
    chunks = -(-positions // CHUNK)
    return chunks, -(-positions // (chunks * STRIPES))
