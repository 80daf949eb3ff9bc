"""What pairs of subcomponents do to each other through a head, whatever the data (method.md §11).

A query subcomponent c and a key subcomponent c' add to the score of a key that lies ``offset`` positions back

    a_c · m_c · a_c' · m_c' · I_h(c, c', offset),        I_h = U_c,h · RoPE(−offset) U_c',h / √d_head,

with ``a = x · V`` and masks m. The same between values and outputs, without positions: the value subcomponent c adds
``a_c · m_c · U_c,h · V_c',h`` to what the output subcomponent c' reads, times the attention.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vpd.analysis.attention.layers import AttentionLayer, Projection
from vpd.analysis.attention.typical import Typical
from vpd.analysis.run import Run
from vpd.rotary import frequencies

MOST = 128  # subcomponents of a matrix that are paired, the largest on data

Vectors = Float[np.ndarray, "n heads d_head"]


@dataclass(frozen=True)
class Pairs:
    """Interactions of the subcomponents of two matrices of one layer.

    Attributes:
        first: of queries or values, by index.
        second: of keys or outputs.
        offsets: how far back the key lies; ``[0]`` where nothing depends on it.
        interaction: at unit activations, ``[heads, first, second, offsets]``.
        typical: the same at typical activations on data: scores in nats of attention logits for queries and keys, for
            values and outputs the length of what is written into the stream where a head attends to one position.
        together: for queries and keys the sum of all pairs at their mean activations, ``[heads, offsets]``: the part of
            the score that is there whatever the tokens are.
    """

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " m"]
    offsets: Int[np.ndarray, " k"]
    interaction: Float[np.ndarray, "heads n m k"]
    typical: Float[np.ndarray, "heads n m k"]
    together: Float[np.ndarray, "heads k"] | None = None

    def strongest(self, top: int) -> list[tuple[int, int]]:
        """Places of the pairs with the largest typical interaction at any head and offset."""
        best = np.abs(self.typical).max(axis=(0, 3))
        order = np.argsort(-best, axis=None, kind="stable")[:top]
        return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, best.shape), strict=True)]

    def peak(self, i: int, j: int) -> tuple[int, int]:
        """Head and place of the offset at which a pair's interaction is largest."""
        head, place = np.unravel_index(np.argmax(np.abs(self.typical[:, i, j])), self.typical[:, i, j].shape)
        return int(head), int(place)


def offset_interactions(
    queries: Vectors,
    keys: Float[np.ndarray, "m kv_heads d_head"],
    offsets: Int[np.ndarray, " k"],
    layer: AttentionLayer,
) -> Float[np.ndarray, "heads n m k"]:
    """``queries_h · RoPE(−offset) keys_h / √d_head`` of every pair, in float64.

    Args:
        queries: U of query subcomponents, head by head.
        keys: U of key subcomponents; a head of keys serves its whole group of query heads.
        offsets: query position less key position.
        layer: its rotary frequencies and its heads.
    """
    q, k = queries.astype(np.float64), np.repeat(keys.astype(np.float64), layer.group, axis=1)
    half, base = q.shape[-1] // 2, layer.heads.base
    if base is None:
        still = np.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5
        return np.broadcast_to(still[..., None], (*still.shape, len(offsets)))
    # Dimensions j and j + half are one complex number, which turns by its frequency a position (rotate-half).
    a, b = (x[..., :half] + 1j * x[..., half:] for x in (q, k))
    turns = np.exp(1j * np.multiply.outer(offsets, frequencies(half, base, layer.heads.scaling)))
    # One head at a time: a product of matrices each, [n · offsets, half] with [half, m].
    found = np.empty((q.shape[1], len(q), len(k), len(offsets)))
    for head in range(q.shape[1]):
        turned = (a[:, head, None, :] * turns).reshape(-1, half) @ b[:, head].conj().T
        found[head] = turned.real.reshape(len(q), len(offsets), len(k)).swapaxes(1, 2)
    return found * q.shape[-1] ** -0.5


def query_key_pairs(run: Run, layer: AttentionLayer, typical: Typical, longest: int) -> Pairs | None:
    """Static interactions of queries and keys by offset, None where either is not decomposed.

    Args:
        run: opened.
        layer: of its target.
        typical: sizes of activations on data.
        longest: number of offsets; one where positions don't enter.
    """
    q, k = layer.decomposed(run, "q"), layer.decomposed(run, "k")
    if q is None or k is None:
        return None
    ends = layer.projections["q"], layer.projections["k"]
    writes = [end.by_head(np.asarray(U, np.float64)) for end, U in zip(ends, (q.U, k.U), strict=True)]
    first, second = (_largest(typical, end, own) for end, own in zip(ends, writes, strict=True))
    offsets = np.arange(longest if layer.heads.base is not None else 1)
    found = offset_interactions(writes[0][first], writes[1][second], offsets, layer)
    sizes = typical.size[ends[0].site][first][:, None], typical.size[ends[1].site][second]
    means = typical.mean[ends[0].site][first], typical.mean[ends[1].site][second]
    together = np.einsum("hnmk,n,m->hk", found, *means)
    return Pairs(first, second, offsets, found, found * (sizes[0] * sizes[1])[..., None], together)


def _largest(typical: Typical, end: Projection, vectors: Vectors) -> Int[np.ndarray, " _kept"]:
    return typical.largest(end.site, np.sqrt(np.square(vectors).sum(axis=(1, 2))), MOST)


def value_output_pairs(run: Run, layer: AttentionLayer, typical: Typical) -> Pairs | None:
    """What the output's subcomponents read of the values', None where either is not decomposed."""
    v, o = layer.decomposed(run, "v"), layer.decomposed(run, "o")
    if v is None or o is None:
        return None
    ends = layer.projections["v"], layer.projections["o"]
    writes, reads = ends[0].by_head(np.asarray(v.U, np.float64)), ends[1].by_head(np.asarray(o.V, np.float64).T)
    lengths = np.linalg.norm(np.asarray(o.U, np.float64), axis=1)
    first, second = _largest(typical, ends[0], writes), typical.largest(ends[1].site, lengths, MOST)
    spread = np.repeat(writes[first], layer.group, axis=1)
    found = np.einsum("nhd,mhd->hnm", spread, reads[second])[..., None]
    size, length = typical.size[ends[0].site][first][:, None], lengths[second]
    return Pairs(first, second, np.arange(1), found, found * (size * length)[..., None])
