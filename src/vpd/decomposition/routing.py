"""Routing: per position and site, whether the masked components or the frozen weight are used."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key


@dataclass(frozen=True)
class AllRouting:
    """Masked components everywhere."""


@dataclass(frozen=True)
class UniformKSubset:
    """Per position: k uniform in 1 … sites, then a uniform k-subset of the sites."""


@dataclass(frozen=True)
class StaticProbability:
    """Bernoulli(p) per site and position."""

    p: float


Routing = AllRouting | UniformKSubset | StaticProbability


def draw_routing(
    routing: Routing, key: Key[Array, ""], sites: Sequence[str], leading: tuple[int, ...]
) -> dict[str, Bool[Array, "*leading"] | None]:
    """One draw for the live sites of a forward; None where every position is routed.

    Args:
        routing: which distribution.
        key: random key of this forward.
        sites: the live sites, among which a subset is chosen.
        leading: ``(batch,)`` or ``(batch, sequence)``.
    """
    match routing:
        case AllRouting():
            return dict.fromkeys(sites)
        case StaticProbability(p=p):
            keep = jax.random.bernoulli(key, p, (len(sites), *leading))
        case UniformKSubset():
            key_k, key_order = jax.random.split(key)
            k = jax.random.randint(key_k, leading, 1, len(sites) + 1)
            # The rank of an independent uniform score is a uniform permutation: ranks below k are a uniform k-subset.
            scores = jax.random.uniform(key_order, (len(sites), *leading))
            rank = jnp.argsort(jnp.argsort(scores, axis=0), axis=0)
            keep = rank < k
    return {site: keep[i] for i, site in enumerate(sites)}
