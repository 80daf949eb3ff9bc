"""How far a masked output is from the clean one, per position, in float32 (method.md §4)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, Factored, dense

# A vocabulary wider than this is never held as logits: its head is multiplied part by part.
CHUNK = 8192


def made_once(clean: Activation) -> Activation:
    """A clean output that many are compared with: logits of a wide vocabulary stay the product that they are."""
    return clean if clean.shape[-1] > CHUNK else dense(clean)


def squared_error(clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
    """Mean over the output's entries of the squared difference: the divergence of toys."""
    a, b = (dense(x).astype(jnp.float32) for x in (clean, masked))
    return jnp.mean(jnp.square(a - b), axis=-1)


def kl(clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
    """KL(clean ‖ masked) of the softmaxes, in nats: the divergence of language models.

    Logits that are known as products ``h @ W`` are made in chunks of the vocabulary, in the backward pass again. No
    gradient flows into the clean side.
    """
    if isinstance(clean, Factored) and isinstance(masked, Factored) and clean.shape[-1] > CHUNK:
        return _chunked_kl(jax.lax.stop_gradient(clean), masked)
    return _dense_kl(jax.lax.stop_gradient(dense(clean)), dense(masked))


@jax.custom_vjp
def _dense_kl(
    clean: Float[Array, "*leading vocab"], masked: Float[Array, "*leading vocab"]
) -> Float[Array, "*leading"]:
    return _dense_forward(clean, masked)[0]


def _dense_forward(
    clean: Float[Array, "*leading vocab"], masked: Float[Array, "*leading vocab"]
) -> tuple[Float[Array, "*leading"], Float[Array, "*leading vocab"]]:
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (clean, masked))
    p = jnp.exp(log_p)
    return jnp.sum(p * (log_p - log_q), axis=-1), (jnp.exp(log_q) - p).astype(masked.dtype)


def _dense_backward(
    residual: Float[Array, "*leading vocab"], g: Float[Array, "*leading"]
) -> tuple[Float[Array, "*leading vocab"], Float[Array, "*leading vocab"]]:
    slope = g[..., None].astype(residual.dtype) * residual
    return jnp.zeros_like(slope), slope


_dense_kl.defvjp(_dense_forward, _dense_backward)


def cross_entropy(logits: Activation, tokens: Int[Array, "*leading"]) -> Float[Array, "*leading"]:
    """``−log softmax(logits)[token]`` in float32, in nats; a wide vocabulary in chunks."""
    if not isinstance(logits, Factored) or logits.shape[-1] <= CHUNK:
        log_p = jax.nn.log_softmax(dense(logits).astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    parts = [
        jnp.sum(z * jnp.take(basis, tokens, axis=1).transpose(*range(1, z.ndim), 0), -1) for z, basis in logits.terms
    ]
    chosen = sum(parts[1:], parts[0]).astype(jnp.float32)

    def chunk(now: tuple[Array, Array], i: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
        top, total = now
        part = _logits(logits, i)
        higher = jnp.maximum(top, part.max(axis=-1))
        return (higher, total * jnp.exp(top - higher) + jnp.sum(jnp.exp(part - higher[..., None]), axis=-1)), None

    zero = jnp.zeros(logits.shape[:-1], jnp.float32)
    (top, total), _ = jax.lax.scan(chunk, (zero - jnp.inf, zero), jnp.arange(_chunks(logits.shape[-1])[0]))
    return top + jnp.log(total) - chosen


class _Running(NamedTuple):
    """Sums over the chunks so far, relative to the largest logits met."""

    top_p: Float[Array, "*leading"]
    sum_p: Float[Array, "*leading"]
    gap: Float[Array, "*leading"]
    top_q: Float[Array, "*leading"]
    sum_q: Float[Array, "*leading"]


def _chunks(vocab: int) -> tuple[int, int]:
    """Number of chunks and their width."""
    n = -(-vocab // CHUNK)
    return n, -(-vocab // n)


def _logits(x: Factored, i: Int[Array, ""]) -> Float[Array, "*leading chunk"]:
    """Chunk i in float32. The last one begins early enough to be whole; what it repeats is -inf."""
    vocab = x.shape[-1]
    _, width = _chunks(vocab)
    start = jnp.minimum(i * width, vocab - width)
    parts = [z @ jax.lax.dynamic_slice_in_dim(basis, start, width, axis=1) for z, basis in x.terms]
    whole = sum(parts[1:], parts[0]).astype(jnp.float32)
    return jnp.where(start + jnp.arange(width) >= i * width, whole, -jnp.inf)


def _kl_and_norms(
    clean: Factored, masked: Factored
) -> tuple[Float[Array, "*leading"], Float[Array, "*leading"], Float[Array, "*leading"]]:
    """The divergence, and the log-normalisers of both softmaxes."""
    n, _ = _chunks(clean.shape[-1])

    def chunk(now: _Running, i: Int[Array, ""]) -> tuple[_Running, None]:
        p, q = _logits(clean, i), _logits(masked, i)
        top_p = jnp.maximum(now.top_p, p.max(axis=-1))
        top_q = jnp.maximum(now.top_q, q.max(axis=-1))
        weight, old = jnp.exp(p - top_p[..., None]), jnp.exp(now.top_p - top_p)
        gap = jnp.where(jnp.isfinite(p), p - q, 0.0)
        return _Running(
            top_p,
            now.sum_p * old + weight.sum(axis=-1),
            now.gap * old + jnp.sum(weight * gap, axis=-1),
            top_q,
            now.sum_q * jnp.exp(now.top_q - top_q) + jnp.sum(jnp.exp(q - top_q[..., None]), axis=-1),
        ), None

    zero = jnp.zeros(clean.shape[:-1], jnp.float32)
    start = _Running(zero - jnp.inf, zero, zero, zero - jnp.inf, zero)
    last, _ = jax.lax.scan(chunk, start, jnp.arange(n))
    norm_p, norm_q = last.top_p + jnp.log(last.sum_p), last.top_q + jnp.log(last.sum_q)
    return last.gap / last.sum_p - norm_p + norm_q, norm_p, norm_q


@jax.custom_vjp
def _chunked_kl(clean: Factored, masked: Factored) -> Float[Array, "*leading"]:
    return _kl_and_norms(clean, masked)[0]


def _is_primal(node: object) -> bool:
    return isinstance(node, CustomVJPPrimal)


# Of each basis, whether it is trained: known by what is there, since only arrays are kept.
_Moves = tuple[Float[Array, ""] | None, ...]
_Residuals = tuple[Factored, Factored, Float[Array, "*leading"], Float[Array, "*leading"], _Moves]


def _chunked_forward(clean: Factored, masked: Factored) -> tuple[Float[Array, "*leading"], _Residuals]:
    # A basis that is frozen needs no gradient, which would cost as much as the logits.
    leaves = [leaf for leaf in jax.tree.leaves(masked, is_leaf=_is_primal) if isinstance(leaf, CustomVJPPrimal)]
    moves = tuple(jnp.zeros(()) if leaf.perturbed else None for leaf in leaves[1::2])
    a, b = (jax.tree.map(lambda x: x.value, side, is_leaf=_is_primal) for side in (clean, masked))
    divergence, norm_p, norm_q = _kl_and_norms(a, b)
    return divergence, (a, b, norm_p, norm_q, moves)


_Sums = tuple[tuple[Array, Array], ...]


def _chunked_backward(residuals: _Residuals, g: Float[Array, "*leading"]) -> tuple[Factored, Factored]:
    clean, masked, norm_p, norm_q, moves = residuals
    vocab = clean.shape[-1]
    n, width = _chunks(vocab)

    def chunk(sums: _Sums, i: Int[Array, ""]) -> tuple[_Sums, None]:
        p, q = (jnp.exp(_logits(x, i) - norm[..., None]) for x, norm in ((clean, norm_p), (masked, norm_q)))
        slope = g[..., None] * (q - p)
        start = jnp.minimum(i * width, vocab - width)
        return tuple(
            _term_gradient(term, so_far, slope.astype(term[0].dtype), start, moved is not None)
            for term, so_far, moved in zip(masked.terms, sums, moves, strict=True)
        ), None

    zero = tuple((jnp.zeros_like(z), jnp.zeros_like(basis)) for z, basis in masked.terms)
    sums, _ = jax.lax.scan(chunk, zero, jnp.arange(n))
    return jax.tree.map(jnp.zeros_like, clean), Factored(sums)


def _term_gradient(
    term: tuple[Array, Array],
    sums: tuple[Array, Array],
    slope: Float[Array, "*leading chunk"],
    start: Int[Array, ""],
    moved: bool,
) -> tuple[Array, Array]:
    """Adds what one chunk of logits says of coefficients and, where it is trained, of the basis."""
    (z, basis), (of_z, of_basis) = term, sums
    columns = jax.lax.dynamic_slice_in_dim(basis, start, slope.shape[-1], axis=1)
    of_z = of_z + slope @ columns.T
    if moved:
        add = partial(jnp.einsum, "nd,nv->dv")
        part = add(z.reshape(-1, z.shape[-1]), slope.reshape(-1, slope.shape[-1]))
        before = jax.lax.dynamic_slice_in_dim(of_basis, start, slope.shape[-1], axis=1)
        of_basis = jax.lax.dynamic_update_slice_in_dim(of_basis, before + part, start, axis=1)
    return of_z, of_basis


_chunked_kl.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)
