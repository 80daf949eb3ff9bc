"""How well a decomposition found the known mechanisms of a toy: MMCS, ML2R, rank-one cosines (method.md §10)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

# A feature counts as recovered where both cosines of its best match reach this: a subcomponent that carries a second
# feature stays well below. How exact the matches are is what the means say.
MATCH_COSINE = 0.99


@dataclass(frozen=True)
class Match:
    """Each feature's best live subcomponent at one site.

    Attributes:
        cosine: of its feature vector with the target's, ``[n_features]``.
        rank_one: Frobenius cosine of the whole rank-one matrix with the feature's row or column.
        norm_ratio: of the feature vectors' norms, learned over target.
        subcomponent: index of the match, −1 where none is live.
        live: number of live subcomponents.
    """

    cosine: Float[np.ndarray, " n_features"]
    rank_one: Float[np.ndarray, " n_features"]
    norm_ratio: Float[np.ndarray, " n_features"]
    subcomponent: Int[np.ndarray, " n_features"]
    live: int

    @property
    def mmcs(self) -> float:
        """Mean over target columns of the best cosine with a live subcomponent."""
        return float(np.mean(self.cosine))

    @property
    def rank_one_mmcs(self) -> float:
        """The same for the whole rank-one matrix of a feature."""
        return float(np.mean(self.rank_one))

    @property
    def ml2r(self) -> float:
        """Mean ratio of norms at the best match."""
        return float(np.mean(self.norm_ratio))

    @property
    def recovered(self) -> int:
        """Features with a good match that no other feature shares."""
        good = (self.cosine >= MATCH_COSINE) & (self.rank_one >= MATCH_COSINE)
        return len(set(self.subcomponent[good].tolist()))


def best_match(matches: Sequence[Match]) -> Match:
    """Each feature's best match over several sites, with subcomponents numbered through all of their live ones."""
    rank_one = np.stack([match.rank_one for match in matches])
    best, j = np.argmax(rank_one, axis=0), np.arange(rank_one.shape[1])
    firsts = np.cumsum([0, *(int(match.subcomponent.max(initial=-1)) + 1 for match in matches)])[:-1]
    numbers = np.stack(
        [np.where(m.subcomponent < 0, -1, m.subcomponent + f) for m, f in zip(matches, firsts, strict=True)]
    )
    return Match(
        cosine=np.stack([match.cosine for match in matches])[best, j],
        rank_one=rank_one[best, j],
        norm_ratio=np.stack([match.norm_ratio for match in matches])[best, j],
        subcomponent=numbers[best, j],
        live=sum(match.live for match in matches),
    )


def live_subcomponents(ci: Float[np.ndarray, "n_features C"], threshold: float = 0.1) -> Bool[np.ndarray, " C"]:
    """Whether lower CI passes the threshold on at least one single-feature input."""
    return np.any(ci > threshold, axis=0)


def match_features(
    weight: Float[np.ndarray, "d_in d_out"],
    V: Float[np.ndarray, "d_in C"],
    U: Float[np.ndarray, "C d_out"],
    live: Bool[np.ndarray, " C"],
    features: Literal["rows", "columns"],
) -> Match:
    """Best live subcomponent of every feature.

    For row feature j, ``p_jc = V[j, c] · U[c, :]`` against ``W[j, :]``;
    for a column feature, ``p_jc = V[:, c] · U[c, j]`` against ``W[:, j]``.

    Args:
        weight: frozen weight of the site.
        V: read directions.
        U: write directions.
        live: which subcomponents may match; a dead one can win a column by chance.
        features: whether a feature is a row (a site that reads features) or a column (one that writes them).
    """
    reads, writes = (V, U) if features == "rows" else (U.T, V.T)
    rows = (weight if features == "rows" else weight.T).astype(np.float64)
    n = rows.shape[0]
    chosen = np.flatnonzero(live)
    if chosen.size == 0:
        nothing = np.zeros(n)
        return Match(nothing, nothing, nothing, np.full(n, -1), 0)
    reads, writes = reads[:, chosen].astype(np.float64), writes[chosen].astype(np.float64)
    tiny = np.finfo(np.float64).tiny
    row_norm, write_norm = np.linalg.norm(rows, axis=1), np.linalg.norm(writes, axis=1)
    read_norm = np.linalg.norm(reads, axis=0)
    inner = reads * (rows @ writes.T)
    p_norm = np.abs(reads) * write_norm
    cosine = inner / np.maximum(p_norm * row_norm[:, None], tiny)
    rank_one = inner / np.maximum(read_norm * write_norm * row_norm[:, None], tiny)
    best, j = np.argmax(cosine, axis=1), np.arange(n)
    # Where several subcomponents point the same way, the one that carries the feature is its match.
    near = cosine >= cosine[j, best][:, None] - 1e-3
    best = np.argmax(np.where(near, rank_one, -np.inf), axis=1)
    return Match(
        cosine=np.max(cosine, axis=1),
        rank_one=rank_one[j, best],
        norm_ratio=p_norm[j, best] / np.maximum(row_norm, tiny),
        subcomponent=chosen[best],
        live=int(chosen.size),
    )
