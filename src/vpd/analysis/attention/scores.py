"""Attention scores of one prompt as a sum over pairs of query and key subcomponents (method.md §11).

``score_h(t, s) = Σ_p Σ_p' q_p,h(t) · k_p',h(s) / √d_head`` with rotated vectors. The parts p of the queries at
position t are ``a_c · m_c · U_c`` of every subcomponent, what the weight delta adds (``δ · x Δ``), and the bias where
there is one; of a projection that is not decomposed the one part is ``x W``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vpd.analysis.attention.layers import AttentionLayer, Projection, Role
from vpd.analysis.run import Run
from vpd.decomposition import Components, SiteMask, dense
from vpd.rotary import rotate
from vpd.targets import Target, frozen_weights
from vpd.targets.base import Pass
from vpd.training.state import Decomposition

Masking = Literal["ci", "target"]
Vectors = Float[Array, "n T heads d_head"]


@dataclass(frozen=True)
class Parts:
    """The parts of queries or of keys of one prompt that are not 0 throughout.

    Attributes:
        labels: ``SITE:INDEX``, ``delta``, ``bias`` or ``frozen``.
        vectors: of each part, rotated by its position.
    """

    labels: tuple[str, ...]
    vectors: Vectors


@dataclass(frozen=True)
class Summary:
    """How much each pair of parts adds to the scores of each head, ``[heads, query parts, key parts]``.

    Attributes:
        size: mean over queries and the keys that they see of the absolute contribution.
        pattern: root mean square of the contribution less its mean over the keys of each query: what a softmax sees.
    """

    size: Float[np.ndarray, "heads n m"]
    pattern: Float[np.ndarray, "heads n m"]

    def strongest(self, top: int, head: int | None = None) -> list[tuple[int, int]]:
        """Pairs of parts by how much they shape the pattern of a head, or of the head where they do most."""
        best = self.pattern.max(axis=0) if head is None else self.pattern[head]
        order = np.argsort(-best, axis=None, kind="stable")[:top]
        return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, best.shape), strict=True)]


@dataclass(frozen=True)
class ScoreParts:
    """The scores of one layer on one prompt, taken apart.

    Attributes:
        layer: of the target.
        queries: parts of the queries.
        keys: parts of the keys, with as many heads as the queries.
        scores: of the masked model itself, ``[heads, T, T]``, before the softmax and without the causal mask.
    """

    layer: AttentionLayer
    queries: Parts
    keys: Parts
    scores: Float[np.ndarray, "heads T T"]

    def contribution(self, i: int, j: int) -> Float[np.ndarray, "heads T T"]:
        """What one pair of parts adds, query position first."""
        return np.asarray(_products(self.queries.vectors[i][None], self.keys.vectors[j][None])[0, 0])

    def at(self, head: int, query: int, key: int) -> Float[np.ndarray, "n m"]:
        """What every pair of parts adds to one score."""
        q, k = self.queries.vectors[:, query, head], self.keys.vectors[:, key, head]
        return np.asarray((q @ k.T) * q.shape[-1] ** -0.5)

    def total(self) -> Float[np.ndarray, "heads T T"]:
        """The sum over all pairs, added up one pair at a time."""
        found = np.zeros(self.scores.shape)
        for i in range(len(self.queries.labels)):
            found += np.asarray(_row(self.queries.vectors[i], self.keys.vectors), np.float64).sum(axis=0)
        return found

    @cached_property
    def summary(self) -> Summary:
        """Sizes of all pairs."""
        size, pattern = _summaries(self.queries.vectors, self.keys.vectors)
        return Summary(np.asarray(size).swapaxes(0, 1), np.asarray(pattern).swapaxes(0, 1))

    @property
    def attention(self) -> Float[np.ndarray, "heads T T"]:
        """The masked model's attention: softmax over the keys that each query sees."""
        return np.asarray(jax.nn.softmax(jnp.where(_seen(self.scores.shape[-1]), self.scores, -jnp.inf), axis=-1))


def _products(q: Vectors, k: Float[Array, "m T heads d_head"]) -> Float[Array, "n m heads T T"]:
    return jnp.einsum("nthd,mshd->nmhts", q, k) * q.shape[-1] ** -0.5


@jax.jit
def _row(q: Float[Array, "T heads d_head"], k: Vectors) -> Float[Array, "n heads T T"]:
    return _products(q[None], k)[0]


def _seen(length: int) -> Array:
    return jnp.tril(jnp.ones((length, length), bool))


@jax.jit
def _summaries(q: Vectors, k: Float[Array, "m T heads d_head"]) -> tuple[Array, Array]:
    """``[n, heads, m]`` of :class:`Summary`, one query part at a time."""
    seen = _seen(q.shape[1])
    keys = jnp.arange(1, q.shape[1] + 1, dtype=q.dtype)
    pairs = jnp.sum(keys)

    def one(part: Float[Array, "T heads d_head"]) -> tuple[Array, Array]:
        found = jnp.where(seen, _products(part[None], k)[0], 0.0)
        mean = jnp.sum(found, axis=-1, keepdims=True) / keys[:, None]
        centred = jnp.where(seen, found - mean, 0.0)
        size = jnp.sum(jnp.abs(found), axis=(-1, -2)) / pairs
        return size.T, jnp.sqrt(jnp.sum(jnp.square(centred), axis=(-1, -2)) / pairs).T

    return jax.lax.map(one, q)


@dataclass(frozen=True)
class Given:
    """What the masked forward of one prompt leaves, by path: V and U, masks, inputs, and ``x W`` of the inputs."""

    components: Mapping[str, Components]
    masks: Mapping[str, SiteMask]
    inputs: Mapping[str, Float[Array, "T d_in"]]
    frozen: Mapping[str, Float[Array, "T d_out"]]


def prompt_scores(
    run: Run, layers: tuple[AttentionLayer, ...], tokens: Int[Array, "1 T"], masking: Masking = "ci"
) -> list[ScoreParts]:
    """Take the attention scores of some layers apart, on one prompt.

    Args:
        run: opened.
        layers: which.
        tokens: of the prompt.
        masking: ``ci`` masks every decomposed matrix of the model by its causal importances, deltas off; ``target`` is
            the network itself, all masks and deltas 1.
    """
    masks = _masks(run, tokens, masking)
    names = tuple(dict.fromkeys(layer.projections[role].site for layer in layers for role in ("q", "k")))
    components = {name: run.components(name) for name in names if name in run.sites}
    program = jax.jit(partial(_masked_pass, names))
    inputs, outputs, frozen = program(run.experiment.target, run.decomposition, tokens, masks)
    found: list[ScoreParts] = []
    for layer in layers:
        own = Given(components, masks, inputs, frozen)
        q, k = (_parts(layer, role, own) for role in ("q", "k"))
        whole = [_whole(layer, layer.projections[role], outputs) for role in ("q", "k")]
        scores = np.asarray(_products(whole[0][None], whole[1][None])[0, 0])
        found.append(ScoreParts(layer, q, k, scores))
    return found


def _whole(layer: AttentionLayer, end: Projection, outputs: Mapping[str, Array]) -> Float[Array, "T heads d_head"]:
    """The queries or keys of the masked model, rotated."""
    own = outputs[end.site][:, end.columns]
    return _turned(layer, end, own.reshape(1, own.shape[0], end.heads, -1))[0]


def _turned(layer: AttentionLayer, end: Projection, x: Vectors) -> Vectors:
    """Rotated by position, keys once for every query head that reads them."""
    heads = layer.heads
    x = x if heads.base is None else rotate(x, heads.base, heads.scaling)
    return jnp.repeat(x, layer.group, axis=2) if end.role == "k" else x


def _parts(layer: AttentionLayer, role: Role, given: Given) -> Parts:
    end = layer.projections[role]
    named = [(label, x[..., end.columns]) for label, x in _unrotated(end.site, given)]
    if role in layer.bias:
        shape = named[0][1].shape
        named.append(("bias", jnp.broadcast_to(jnp.asarray(layer.bias[role]), shape)))
    vectors = jnp.stack([x for _, x in named])
    vectors = vectors.reshape(*vectors.shape[:2], end.heads, -1)
    return Parts(tuple(label for label, _ in named), _turned(layer, end, vectors))


def _unrotated(site: str, given: Given) -> Iterator[tuple[str, Float[Array, "T d_out"]]]:
    """The parts of a site's output that are not 0 throughout, its bias left out."""
    if site not in given.components:
        yield "frozen", given.frozen[site]
        return
    pieces, mask = given.components[site], given.masks[site]
    V, U = (x.astype(jnp.float32) for x in (pieces.V, pieces.U))
    inner = given.inputs[site] @ V
    kept = inner * mask.component[0].astype(jnp.float32)
    for c in np.flatnonzero(np.any(np.asarray(kept) != 0, axis=0)):
        yield f"{site}:{c}", kept[:, c, None] * U[c]
    if mask.delta is not None:
        delta = jnp.broadcast_to(mask.delta, (1, len(inner)))[0].astype(jnp.float32)
        yield "delta", delta[:, None] * (given.frozen[site] - inner @ U)


def _masks(run: Run, tokens: Int[Array, "1 T"], masking: Masking) -> dict[str, SiteMask]:
    """Of every single matrix."""
    if masking == "target":
        one = jnp.ones(tokens.shape)
        return {site: SiteMask(jnp.ones((*tokens.shape, C)), one) for site, C in run.axis.sizes.items()}
    return {site: SiteMask(ci.astype(jnp.float32)) for site, ci in run.causal_importances(tokens).items()}


def _masked_pass(
    names: tuple[str, ...],
    target: Target,
    decomposition: Decomposition,
    tokens: Int[Array, "1 T"],
    masks: dict[str, SiteMask],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Inputs, outputs and frozen products of the named matrices, in float32."""
    dtype = jax.tree.leaves(target)[0].dtype
    components, masks = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, (decomposition.components, masks)
    )
    seam = Pass(masks, components, wanted=None)
    target.forward(tokens, seam)
    inputs = {name: dense(seam.inputs[name])[0].astype(jnp.float32) for name in names}
    outputs = {name: dense(seam.outputs[name])[0].astype(jnp.float32) for name in names}
    weights = frozen_weights(target, tokens)
    return inputs, outputs, {name: inputs[name] @ weights[name].astype(jnp.float32) for name in names}
