"""What is known of a decomposition from its weights alone: what each matrix leaves over, and effective ranks."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vpd.decomposition import ComponentSet, Site, members_in_order, site_delta, unstacked
from vpd.hosts import gathered
from vpd.objective.faithfulness import site_weight

BySite = Mapping[str, Float[Array | np.ndarray, "..."]]


class WeightSquares(eqx.Module):
    """Sums of squared entries of each site, ``{site: ·}``, of a stack one a matrix.

    Attributes:
        weight: ``‖W‖²``.
        delta: ``‖W − V U‖²``.
    """

    weight: BySite
    delta: BySite


def weight_squares(sites: Sequence[Site], weights: BySite, components: ComponentSet) -> WeightSquares:
    """Squared norms of weights and weight deltas in float32.

    Args:
        sites: the decomposed sites.
        weights: ``{site: W [d_in, d_out]}``.
        components: V and U in float32.
    """

    def squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1))

    own = {site.name: jnp.asarray(site_weight(site, {s: jnp.asarray(w) for s, w in weights.items()})) for site in sites}
    weight = {name: squared(W) for name, W in own.items()}
    # An inserted identity of a stack has one weight for all its matrices.
    weight = {site.name: jnp.broadcast_to(weight[site.name], site.stack) for site in sites}
    delta = {site.name: squared(site_delta(own[site.name], components[site.name])) for site in sites}
    return WeightSquares(weight, delta)


def faithfulness_of(sites: Sequence[Site], squares: WeightSquares) -> float:
    """``Σ_sites ‖W − V U‖² / Σ_sites numel(W)``: FaithfulnessLoss."""
    entries = sum(site.depth * site.d_in * site.d_out for site in sites)
    return float(sum(np.sum(np.asarray(x, np.float64)) for x in squares.delta.values())) / entries


def relative_deltas(sites: Sequence[Site], squares: WeightSquares) -> dict[str, float]:
    """``‖W − V U‖ / ‖W‖`` of each single matrix in numeric layer order; of a matrix of zeros, the norm of the delta."""
    weight, delta = unstacked(squares.weight, sites), unstacked(squares.delta, sites)
    return {s: float(np.sqrt(delta[s] / weight[s] if weight[s] > 0 else delta[s])) for s in delta}


def relative_delta(squares: WeightSquares) -> float:
    """``‖W − V U‖ / ‖W‖`` of all matrices together."""
    weight, delta = (
        sum(float(np.sum(np.asarray(x, np.float64))) for x in of.values()) for of in (squares.weight, squares.delta)
    )
    return float(np.sqrt(delta / weight)) if weight > 0 else float(np.sqrt(delta))


def per_site_metrics(key: str, sites: Sequence[Site], squares: WeightSquares) -> dict[str, float]:
    """FaithfulnessPerSite: ``<key>/<site>`` is the mean squared entry of Δ, ``…/relative`` is ‖Δ‖ / ‖W‖."""
    delta, relative = unstacked(squares.delta, sites), relative_deltas(sites, squares)
    found: dict[str, float] = {}
    for site, _, name in members_in_order(sites):
        found[f"{key}/{name}"] = float(delta[name]) / (site.d_in * site.d_out)
        found[f"{key}/{name}/relative"] = relative[name]
    return found


def singular_values(sites: Sequence[Site], weights: BySite, components: ComponentSet) -> dict[str, BySite]:
    """Singular values of W and of V U of each site, the largest first, ``{weight, subcomponents}: {site: ·}``."""
    arrays = {s: jnp.asarray(w, jnp.float32) for s, w in weights.items()}
    weight: dict[str, Array] = {}
    product: dict[str, Array] = {}
    for site in sites:
        pieces = components[site.name]
        own = jnp.linalg.svd(site_weight(site, arrays), compute_uv=False)
        # An inserted identity of a stack has one weight for all its matrices.
        weight[site.name] = jnp.broadcast_to(own, (*site.stack, own.shape[-1]))
        product[site.name] = jnp.linalg.svd(pieces.V @ pieces.U, compute_uv=False)
    return {"weight": weight, "subcomponents": product}


def effective_rank(values: Float[np.ndarray, " k"]) -> float:
    """``exp(−Σ p log p)`` with ``p = σ / Σ σ`` (Roy and Vetterli 2007); 0 for a matrix of zeros."""
    total = float(np.sum(values, dtype=np.float64))
    if total == 0:
        return 0.0
    p = np.asarray(values, np.float64) / total
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def rank_metrics(key: str, sites: Sequence[Site], values: Mapping[str, BySite]) -> dict[str, float]:
    """EffectiveRank: ``<key>/<site>/weight`` of W, ``…/subcomponents`` of V U."""
    single = {of: unstacked(gathered(dict(by_site)), sites) for of, by_site in values.items()}
    return {
        f"{key}/{name}/{of}": effective_rank(np.asarray(by_site[name]))
        for _, _, name in members_in_order(sites)
        for of, by_site in single.items()
    }
