"""The masked site: what one decomposed matrix computes (method.md §2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.decomposition.components import Components, SiteKind
from vpd.decomposition.masks import SiteMask

SiteInput = Float[Array, "*leading d_in"] | Int[Array, "*leading"]


def site_frozen(
    x: SiteInput, weight: Float[Array, "d_in d_out"] | None, kind: SiteKind = "linear"
) -> Float[Array, "*leading d_out"]:
    """What the frozen weight computes, without its bias: ``x @ W``, a row lookup, or x itself."""
    match kind:
        case "identity":
            return x
        case "embedding":
            assert weight is not None
            return weight[x]
        case "linear":
            assert weight is not None
            return x @ weight


def site_inner(x: SiteInput, components: Components, kind: SiteKind = "linear") -> Float[Array, "*leading C"]:
    """Component activations ``x @ V``, for an embedding the row lookup ``V[x]``."""
    return components.V[x] if kind == "embedding" else x @ components.V


def site_delta(weight: Float[Array, "d_in d_out"], components: Components) -> Float[Array, "d_in d_out"]:
    """The weight delta Δ = W − V @ U. For losses on weights; the forward path never forms it."""
    return weight - components.V @ components.U


def masked_site(
    x: SiteInput,
    weight: Float[Array, "d_in d_out"] | None,
    components: Components,
    mask: SiteMask,
    bias: Float[Array, " d_out"] | None = None,
    kind: SiteKind = "linear",
) -> Shaped[Array, "*leading d_out"]:
    """``((x V) ∘ m) U + δ (x Δ) + b`` where routed, else ``x W + b``.

    With a delta mask, ``x Δ = x W − (x V) U`` gives ``δ (x W) + ((x V) ∘ (m − δ)) U``: Δ is live and never formed, and
    ``x W`` is shared with the routing blend.

    Args:
        x: ``[*leading, d_in]``, or row indices ``[*leading]`` for an embedding.
        weight: ``[d_in, d_out]``; None for an identity.
        components: V and U of the site.
        mask: component mask, and optionally delta mask and routing.
        bias: ``[d_out]``.
        kind: what the frozen weight does.
    """
    inner = site_inner(x, components, kind)
    if mask.delta is None:
        y = (inner * mask.component) @ components.U
        if mask.routing is not None:
            y = jnp.where(mask.routing[..., None], y, site_frozen(x, weight, kind))
    else:
        frozen = site_frozen(x, weight, kind)
        delta = mask.delta[..., None]
        y = delta * frozen + (inner * (mask.component - delta)) @ components.U
        if mask.routing is not None:
            y = jnp.where(mask.routing[..., None], y, frozen)
    return y if bias is None else y + bias
