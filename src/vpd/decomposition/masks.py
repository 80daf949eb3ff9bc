"""Sources to masks, and the shapes that sources may have (method.md §1 and 5)."""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scope = Literal["c", "sc", "nsc", "bc", "bsc"]


class SiteMask(eqx.Module):
    """What the masked forward multiplies by at one site.

    Attributes:
        component: ``[*leading, C]``, or anything that broadcasts to it.
        delta: mask of the weight delta, broadcastable to ``[*leading]``; None where the delta channel is off.
        routing: ``[*leading]``, True where the masked components are used; None means everywhere.
    """

    component: Float[Array, "..."]
    delta: Float[Array, "..."] | None = None
    routing: Bool[Array, "..."] | None = None


def interpolate(
    ci: Float[Array, "*leading C"],
    source: Float[Array, "..."],
    routing: Bool[Array, "..."] | None = None,
) -> SiteMask:
    """Mask ``ci + (1 − ci) · source``.

    Args:
        ci: lower-leaky causal importances.
        source: broadcastable to ``[*leading, C]``, or to ``[*leading, C + 1]`` where the delta channel is on; the last
            channel is then the delta mask itself, mixed with no importance.
        routing: where the masked components are used.
    """
    C = ci.shape[-1]
    # A split, not slices, whose gradient would be a sum of padded arrays.
    component, *rest = jnp.split(source, [C], axis=-1) if source.shape[-1] == C + 1 else (source,)
    delta = rest[0][..., 0] if rest else None
    return SiteMask(component=ci + (1 - ci) * component, delta=delta, routing=routing)


class Interpolated(eqx.Module):
    """A mask that is made where it is used: inside the scan over layers, one layer at a time.

    Attributes:
        ci: lower-leaky causal importances ``[*leading, C]``.
        source: as stored, ``[n, ..., C]`` or with a delta channel ``[n, ..., C + 1]``; tiled over the batch.
        routing: where the masked components are used.
    """

    ci: Float[Array, "..."]
    source: Float[Array, "..."]
    routing: Bool[Array, "..."] | None = None

    def made(self) -> SiteMask:
        """The mask itself, in the dtype of the importances."""
        return interpolate(self.ci, spread(self.source, self.ci.shape[0]).astype(self.ci.dtype), self.routing)


Mask = SiteMask | Interpolated


def source_shape(scope: Scope, leading: Sequence[int], channels: int, n_sources: int | None = None) -> tuple[int, ...]:
    """Shape in which a site's sources are stored; axes of size 1 are shared.

    ``c`` one vector, ``sc`` one a position, ``nsc`` n of either, ``bc`` one a batch element, ``bsc`` one an element and
    position. ``leading`` is ``(batch,)`` or ``(batch, sequence)``.

    Raises:
        ValueError: a scope that needs a sequence axis without one, or ``nsc`` whose n doesn't divide the batch.
    """
    batch, *rest = leading
    ones = [1] * len(rest)
    if scope in ("sc", "bsc") and not rest:
        raise ValueError(f"source scope {scope!r} needs a sequence axis, and this target has none; use c, nsc or bc")
    match scope:
        case "c":
            return (1, *ones, channels)
        case "sc":
            return (1, *rest, channels)
        case "nsc":
            if n_sources is None or batch % n_sources:
                raise ValueError(f"n_sources {n_sources} must divide the batch size {batch}")
            return (n_sources, *rest, channels)
        case "bc":
            return (batch, *ones, channels)
        case "bsc":
            return (batch, *rest, channels)


def spread(source: Float[Array, "..."], batch: int, axis: int = 0) -> Float[Array, "..."]:
    """Tile stored sources over the batch, which is this axis: element b uses source ``b mod n``."""
    n = source.shape[axis]
    if n in (1, batch):
        return source
    return jnp.tile(source, [batch // n if i == axis else 1 for i in range(source.ndim)])
