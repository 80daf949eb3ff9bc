"""Routing: per position and site, whether the masked components or the frozen weight are used."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from vpd.decomposition.stacks import Site, site_numbers


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
    routing: Routing, key: Key[Array, ""], sites: Sequence[Site], leading: tuple[int, ...]
) -> dict[str, Bool[Array, "..."] | None]:
    """One draw ``{site: [*leading]}`` for the live sites of a forward; None where every position is routed.

    Of a stack each matrix has its own, along a first axis.

    Args:
        routing: which distribution.
        key: random key of this forward.
        sites: the live sites, among which a subset is chosen.
        leading: ``(batch,)`` or ``(batch, sequence)``.
    """
    numbers = site_numbers(sites)
    n = sum(site.depth for site in sites)
    match routing:
        case AllRouting():
            return dict.fromkeys(numbers)
        case StaticProbability(p=p):
            keep = jax.random.bernoulli(key, p, (n, *leading))
        case UniformKSubset():
            key_k, key_order = jax.random.split(key)
            k = jax.random.randint(key_k, leading, 1, n + 1)
            # The rank of an independent uniform score is a uniform permutation: ranks below k are a uniform k-subset.
            scores = jax.random.uniform(key_order, (n, *leading))
            rank = jnp.argsort(jnp.argsort(scores, axis=0), axis=0)
            keep = rank < k
    return {s.name: keep[numbers[s.name][0]] if s.span is None else keep[jnp.asarray(numbers[s.name])] for s in sites}
