"""How much one subcomponent's firing says of another's, or of a token (method.md §11); natural logarithms."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

Counts = Shaped[np.ndarray, "..."]
Ratios = Float[np.ndarray, "..."]


class PairStatistics(NamedTuple):
    """Of a queried subcomponent i and others j; NaN where they never fire together.

    Attributes:
        precision: ``n_ij / n_i``: of the positions where i fires, the part where j does.
        recall: ``n_ij / n_j``.
        jaccard: ``n_ij / (n_i + n_j − n_ij)``.
        pmi: ``ln(n_ij N / (n_i n_j))``, in nats.
    """

    precision: Ratios
    recall: Ratios
    jaccard: Ratios
    pmi: Ratios


class TokenStatistics(NamedTuple):
    """Of a subcomponent and tokens; NaN where a token never occurs together with it.

    Attributes:
        recall: ``m / n_i``: of the positions where it fires, the part that the token has.
        precision: ``m / total``: of the token, the part where it fires.
        lift: precision over the subcomponent's density ``n_i / N``.
        pmi: ``ln(m N / (n_i total))``, in nats: the logarithm of the lift.
    """

    recall: Ratios
    precision: Ratios
    lift: Ratios
    pmi: Ratios


def pair_statistics(n_ij: Counts, n_i: Counts, n_j: Counts, N: int) -> PairStatistics:
    """Statistics of pairs.

    Args:
        n_ij: at how many positions both fire.
        n_i: at how many the queried one does; shapes broadcast.
        n_j: at how many the other does.
        N: number of positions.
    """
    both, own, other = _where_any(n_ij), _float(n_i), _float(n_j)
    return PairStatistics(both / own, both / other, both / (own + other - both), np.log(both * N / (own * other)))


def token_statistics(mass: Counts, n_i: Counts, total: Counts, N: int) -> TokenStatistics:
    """Statistics of tokens.

    Args:
        mass: how often each token was read where the subcomponent fires, or the probability given to it there.
        n_i: at how many positions it fires; shapes broadcast.
        total: how often the token was read at all, or the probability given to it at all.
        N: number of positions.
    """
    both, own, whole = _where_any(mass), _float(n_i), _float(total)
    precision = both / whole
    return TokenStatistics(both / own, precision, precision / (own / N), np.log(both * N / (own * whole)))


def _where_any(counts: Counts) -> Ratios:
    """Float64, NaN in place of 0; what is divided by is then at least as large."""
    return np.where(counts > 0, counts, np.nan).astype(np.float64)


def _float(counts: Counts) -> Ratios:
    return np.where(counts > 0, counts, np.nan).astype(np.float64)
