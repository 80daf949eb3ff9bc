"""The masked site: what one decomposed matrix computes (method.md §2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vpd.decomposition.components import Components
from vpd.decomposition.factored import Activation, Factored, SiteInput, dense, plus, scaled, selected
from vpd.decomposition.masks import Mask, SiteMask
from vpd.decomposition.products import trained_product
from vpd.decomposition.stacks import SiteKind


def site_frozen(
    x: SiteInput, weight: Float[Array, "d_in d_out"] | None, kind: SiteKind = "linear", factored: bool = False
) -> Activation:
    """What the frozen weight computes, without its bias: ``x @ W``, a row lookup, or x itself.

    Args:
        x: ``[*leading, d_in]``, or row indices ``[*leading]`` for an embedding.
        weight: ``[d_in, d_out]``; None for an identity.
        kind: what it does.
        factored: leave the output of a linear site as the product that it is.
    """
    match kind:
        case "identity":
            return x
        case "embedding":
            assert weight is not None and not isinstance(x, Factored)
            return weight[x]
        case "linear":
            assert weight is not None
            return Factored(((dense(x), weight),)) if factored else x @ weight


def site_inner(x: SiteInput, components: Components, kind: SiteKind = "linear") -> Float[Array, "*leading C"]:
    """Component activations ``x @ V``, for an embedding the row lookup ``V[x]``."""
    if kind == "embedding":
        assert not isinstance(x, Factored)
        return components.V[x]
    return x @ components.V if isinstance(x, Factored) else trained_product(x, components.V)


def site_delta(weight: Float[Array, "*stack d_in d_out"], components: Components) -> Float[Array, "*stack d_in d_out"]:
    """The weight delta Δ = W − V @ U, in the components' dtype; for losses on weights, no forward pass forms it."""
    return weight.astype(components.V.dtype) - components.V @ components.U


def masked_site(
    x: SiteInput,
    weight: Float[Array, "d_in d_out"] | None,
    components: Components,
    mask: Mask,
    bias: Float[Array, " d_out"] | None = None,
    kind: SiteKind = "linear",
    factored: bool = False,
) -> Activation:
    """``((x V) ∘ m) U + δ (x Δ) + b`` where routed, else ``x W + b``.

    With a delta mask, ``x Δ = x W − (x V) U`` gives ``δ (x W) + ((x V) ∘ (m − δ)) U``: Δ is live and never formed, and
    ``x W`` is shared with the routing blend.

    Args:
        x: ``[*leading, d_in]``, or row indices ``[*leading]`` for an embedding.
        weight: ``[d_in, d_out]``; None for an identity.
        components: V and U of the site.
        mask: component mask, and optionally delta mask and routing, or what they are made of.
        bias: ``[d_out]``.
        kind: what the frozen weight does.
        factored: leave the output as the sum of products that it is.
    """
    if kind == "identity":
        x = dense(x)
    factored = factored and kind == "linear"
    inner = site_inner(x, components, kind)
    if factored:
        y, delta = Factored(((kept(inner, mask), components.U),)), made(mask).delta
    else:
        # A function of its own for each use: a trace that is shared between uses can differ in what is differentiated.
        # Masks are among the largest arrays of a step: the backward pass makes them again from what they are made of.
        y, delta = jax.checkpoint(lambda *given: _masked_product(*given))(inner, mask, components.U)
    if delta is not None or mask.routing is not None:
        frozen = site_frozen(x, weight, kind, factored)
        y = y if delta is None else plus(scaled(frozen, delta[..., None]), y)
        y = y if mask.routing is None else selected(mask.routing, y, frozen)
    return y if bias is None else with_bias(y, bias)


def made(mask: Mask) -> SiteMask:
    """The mask itself, whatever it is known as."""
    return mask if isinstance(mask, SiteMask) else mask.made()


def kept(inner: Float[Array, "*leading C"], mask: Mask) -> Float[Array, "*leading C"]:
    """``inner ∘ (m − δ)``, or ``inner ∘ m`` without a delta."""
    mask = made(mask)
    weights = mask.component if mask.delta is None else mask.component - mask.delta[..., None]
    return inner * weights


def _masked_product(
    inner: Float[Array, "*leading C"], mask: Mask, U: Float[Array, "C d_out"]
) -> tuple[Float[Array, "*leading d_out"], Float[Array, "..."] | None]:
    """``kept @ U``, and the delta mask."""
    return trained_product(kept(inner, mask), U), made(mask).delta


def with_bias(y: Activation, bias: Float[Array, " d_out"]) -> Activation:
    """``y + bias``; to a sum of products it is one more product, of rank 1."""
    if isinstance(y, Factored):
        one = jnp.ones((*y.shape[:-1], 1), bias.dtype)
        return Factored((*y.terms, (one, bias[None, :])))
    return y + bias
