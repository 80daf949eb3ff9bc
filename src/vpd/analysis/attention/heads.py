"""Which heads a subcomponent spans, and how far the subspaces overlap that heads read from and write to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vpd.analysis.attention.layers import AttentionLayer, Role, Weights
from vpd.analysis.attention.typical import Typical
from vpd.analysis.run import Run

Overlap = Literal["read", "write", "write_read"]
RANK_TOLERANCE = 1e-5  # of the largest singular value: what is smaller spans nothing

Fractions = Float[np.ndarray, "_C heads"]
Basis = Float[np.ndarray, "d rank"]


def head_fractions(run: Run, layer: AttentionLayer, role: Role) -> Fractions | None:
    """``‖U_c,h‖² / ‖U_c‖²`` of each subcomponent and head, of outputs with V in place of U; rows sum to 1.

    A subcomponent that is 0 has a row of 0. None where the projection is not decomposed.
    """
    pieces = layer.decomposed(run, role)
    if pieces is None:
        return None
    own = np.asarray(pieces.V, np.float64).T if role == "o" else np.asarray(pieces.U, np.float64)
    squares = np.square(layer.projections[role].by_head(own)).sum(axis=-1)
    total = squares.sum(axis=1, keepdims=True)
    return squares / np.where(total > 0, total, 1.0)


def heads_spanned(fractions: Fractions) -> Float[np.ndarray, " _C"]:
    """How many heads a subcomponent spans: the participation ratio ``1 / Σ f²``, 1 for one head, 0 for none."""
    squares = np.square(fractions).sum(axis=1)
    return np.where(squares > 0, 1 / np.where(squares > 0, squares, 1.0), 0.0)


@dataclass(frozen=True)
class HeadSpaces:
    """Orthonormal bases in the residual stream of what each head reads and writes.

    Attributes:
        names: ``<layer>.<head>``.
        read: columns span those of ``W_V,h``.
        write: columns span the rows of ``W_O,h``.
    """

    names: Sequence[str]
    read: Sequence[Basis]
    write: Sequence[Basis]

    def angles(self, which: Overlap, i: int, j: int) -> Float[np.ndarray, " rank"]:
        """Cosines of the principal angles between two heads' subspaces, the largest first (Björck & Golub 1973)."""
        first = self.read if which == "read" else self.write
        second = self.write if which == "write" else self.read
        return np.clip(np.linalg.svd(first[i].T @ second[j], compute_uv=False), 0.0, 1.0)

    def overlap(self, which: Overlap) -> Float[np.ndarray, "heads heads"]:
        """Mean squared cosine of the principal angles of each pair of heads: 1 for one subspace within the other.

        ``write_read`` has the writing head in rows and the reading one in columns. Two random subspaces of d_head
        dimensions overlap by about ``d_head / d_model``.
        """
        n = range(len(self.names))
        return np.array([[_mean_square(self.angles(which, i, j)) for j in n] for i in n])


def _mean_square(cosines: np.ndarray) -> float:
    return float(np.mean(np.square(cosines))) if cosines.size else 0.0


def head_spaces(layers: Sequence[AttentionLayer], weights: Weights) -> HeadSpaces:
    """The subspaces of every head of some layers.

    Args:
        layers: of one model.
        weights: of values and outputs, ``{path: [d_in, d_out]}``: the frozen ones, or what subcomponents make of them.
    """
    names: list[str] = []
    read: list[Basis] = []
    write: list[Basis] = []
    for layer in layers:
        v, o = layer.projections["v"], layer.projections["o"]
        values = v.by_head(weights[v.site].astype(np.float64))
        outputs = weights[o.site].astype(np.float64).reshape(o.heads, -1, weights[o.site].shape[1])
        for head in range(layer.heads.n_heads):
            names.append(f"{layer.path}.{head}")
            read.append(_span(values[:, head // layer.group]))
            write.append(_span(outputs[head].T))
    return HeadSpaces(names, read, write)


def _span(matrix: Float[np.ndarray, "d d_head"]) -> Basis:
    """Orthonormal basis of the columns."""
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, values > RANK_TOLERANCE * max(values[0], np.finfo(np.float64).tiny)]


def live_weights(run: Run, layers: Sequence[AttentionLayer], typical: Typical, threshold: float) -> Weights | None:
    """Values and outputs as their live subcomponents alone make them, ``V_live @ U_live``.

    None where the values or outputs of a layer are not decomposed.

    Args:
        run: opened.
        layers: of its target.
        typical: from data.
        threshold: live is a mean importance above it.
    """
    found: dict[str, Float[np.ndarray, "d_in d_out"]] = {}
    for layer in layers:
        for role in ("v", "o"):
            pieces = layer.decomposed(run, role)
            if pieces is None:
                return None
            site = layer.projections[role].site
            live = typical.mean_ci[site] > threshold
            found[site] = np.asarray(pieces.V, np.float32)[:, live] @ np.asarray(pieces.U, np.float32)[live]
    return found


def overlaps(spaces: HeadSpaces) -> Mapping[Overlap, Float[np.ndarray, "heads heads"]]:
    """All three."""
    return {which: spaces.overlap(which) for which in ("read", "write", "write_read")}
