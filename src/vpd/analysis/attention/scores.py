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
from vpd.analysis.run import Run, in_type_of
from vpd.decomposition import Components, SiteMask, dense
from vpd.rotary import Scaling, rotate
from vpd.targets import Target, frozen_weights
from vpd.targets.base import Pass
from vpd.training.state import Decomposition

Masking = Literal["ci", "target"]
Vectors = Float[np.ndarray, "n T heads d_head"]


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
        return _products(self.queries.vectors[i], self.keys.vectors[j])

    def at(self, head: int, query: int, key: int) -> Float[np.ndarray, "n m"]:
        """What every pair of parts adds to one score."""
        q, k = self.queries.vectors[:, query, head], self.keys.vectors[:, key, head]
        return (q @ k.T) * q.shape[-1] ** -0.5

    def total(self) -> Float[np.ndarray, "heads T T"]:
        """The sum over all pairs, added up one pair at a time."""
        found = np.zeros(self.scores.shape)
        for q in self.queries.vectors:
            for k in self.keys.vectors:
                found += _products(q, k)
        return found

    @cached_property
    def summary(self) -> Summary:
        """Sizes of all pairs."""
        size, pattern = _summaries(self.queries.vectors, self.keys.vectors)
        return Summary(np.asarray(size).swapaxes(0, 1), np.asarray(pattern).swapaxes(0, 1))

    @property
    def attention(self) -> Float[np.ndarray, "heads T T"]:
        """The masked model's attention: softmax over the keys that each query sees."""
        scores = np.where(np.tril(np.ones(self.scores.shape[1:], bool)), self.scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)


def _products(
    q: Float[np.ndarray, "T heads d_head"], k: Float[np.ndarray, "T heads d_head"]
) -> Float[np.ndarray, "heads T T"]:
    return q.swapaxes(0, 1) @ k.transpose(1, 2, 0) * q.shape[-1] ** -0.5


@jax.jit
def _summaries(
    q: Float[Array, "n T heads d_head"], k: Float[Array, "m T heads d_head"]
) -> tuple[Float[Array, "n heads m"], Float[Array, "n heads m"]]:
    """Size and pattern of :class:`Summary`, one query part at a time."""
    seen = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    keys = jnp.arange(1, q.shape[1] + 1, dtype=q.dtype)
    pairs = jnp.sum(keys)

    def one(part: Float[Array, "T heads d_head"]) -> tuple[Array, Array]:
        scores = jnp.einsum("thd,mshd->mhts", part, k) * part.shape[-1] ** -0.5
        found = jnp.where(seen, scores, 0.0)
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
    inputs: Mapping[str, Float[np.ndarray, "T d_in"]]
    frozen: Mapping[str, Float[np.ndarray, "T d_out"]]


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
    made = _masked_pass(names, run.experiment.target, run.decomposition, tokens, masks)
    inputs, outputs, frozen = jax.tree.map(np.asarray, made)
    given = Given(components, jax.tree.map(np.asarray, masks), inputs, frozen)
    found: list[ScoreParts] = []
    for layer in layers:
        q, k = (_parts(layer, role, given) for role in ("q", "k"))
        ends = [layer.projections[role] for role in ("q", "k")]
        whole = [_turned(layer, end, outputs[end.site][None, :, end.columns])[0] for end in ends]
        found.append(ScoreParts(layer, q, k, _products(*whole)))
    return found


def _turned(
    layer: AttentionLayer, end: Projection, x: Float[np.ndarray, "n T d_out"]
) -> Float[np.ndarray, "n T heads d_head"]:
    """Head by head and rotated by position, keys once for every query head that reads them."""
    heads = layer.heads
    x = x.reshape(*x.shape[:2], end.heads, x.shape[2] // end.heads)
    x = x if heads.base is None else np.asarray(_rotated(heads.base, heads.scaling, x))
    return np.repeat(x, layer.group, axis=2) if end.role == "k" else x


@partial(jax.jit, static_argnums=(0, 1))
def _rotated(base: float, scaling: Scaling | None, x: Float[Array, "n T heads d_head"]) -> Array:
    return rotate(x, base, scaling)


def _parts(layer: AttentionLayer, role: Role, given: Given) -> Parts:
    end = layer.projections[role]
    named = [(label, x[..., end.columns]) for label, x in _unrotated(end.site, given)]
    none = np.zeros_like(given.frozen[end.site][:, end.columns])
    if role in layer.bias:
        named.append(("bias", none + layer.bias[role]))
    vectors = np.stack([x for _, x in named]) if named else none[None][:0]
    return Parts(tuple(label for label, _ in named), _turned(layer, end, vectors))


def _unrotated(site: str, given: Given) -> Iterator[tuple[str, Float[np.ndarray, "T d_out"]]]:
    """The parts of a site's output that are not 0 throughout, its bias left out."""
    if site not in given.components:
        yield "frozen", given.frozen[site]
        return
    pieces, mask = given.components[site], given.masks[site]
    V, U = (np.asarray(x, np.float32) for x in (pieces.V, pieces.U))
    inner = given.inputs[site] @ V
    kept = inner * np.asarray(mask.component, np.float32)[0]
    for c in np.flatnonzero(np.any(kept != 0, axis=0)):
        yield f"{site}:{c}", kept[:, c, None] * U[c]
    if mask.delta is not None:
        delta = np.asarray(mask.delta, np.float32)[0, :, None]
        yield "delta", delta * (given.frozen[site] - inner @ U)


def _masks(run: Run, tokens: Int[Array, "1 T"], masking: Masking) -> dict[str, SiteMask]:
    """Of every single matrix."""
    if masking == "target":
        one = jnp.ones(tokens.shape)
        return {site: SiteMask(jnp.ones((*tokens.shape, C)), one) for site, C in run.axis.sizes.items()}
    return {site: SiteMask(ci.astype(jnp.float32)) for site, ci in run.causal_importances(tokens).items()}


@partial(jax.jit, static_argnums=0)
def _masked_pass(
    names: tuple[str, ...],
    target: Target,
    decomposition: Decomposition,
    tokens: Int[Array, "1 T"],
    masks: dict[str, SiteMask],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Inputs, outputs and frozen products of the named matrices, in float32."""
    components, masks = in_type_of(target, (decomposition.components, masks))
    seam = Pass(masks, components, wanted=None)
    target.forward(tokens, seam)
    inputs = {name: dense(seam.inputs[name])[0].astype(jnp.float32) for name in names}
    outputs = {name: dense(seam.outputs[name])[0].astype(jnp.float32) for name in names}
    weights = frozen_weights(target, tokens)
    return inputs, outputs, {name: inputs[name] @ weights[name].astype(jnp.float32) for name in names}
