"""FaithfulnessLoss: how far the sum of the subcomponents is from the frozen weights."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from vpd.decomposition import ComponentSet, Site, site_delta


def site_weight(site: Site, weights: Mapping[str, Float[Array, "..."]]) -> Float[Array, "*stack d_in d_out"]:
    """The frozen weight of a site; an inserted identity has no stored one."""
    return jnp.eye(site.d_in) if site.kind == "identity" else weights[site.name]


def faithfulness_loss(
    sites: Sequence[Site], weights: Mapping[str, Float[Array, "..."]], components: ComponentSet
) -> Float[Array, ""]:
    """``Σ_sites ‖W − V U‖² / Σ_sites numel(W)`` in float32.

    Args:
        sites: the decomposed sites.
        weights: ``{site: W [d_in, d_out]}``.
        components: V and U in float32.
    """
    squares = [jnp.sum(jnp.square(site_delta(site_weight(s, weights), components[s.name]))) for s in sites]
    # A float: there may be more weights than an int32 counts.
    return sum(squares[1:], squares[0]) / float(sum(site.depth * site.d_in * site.d_out for site in sites))
