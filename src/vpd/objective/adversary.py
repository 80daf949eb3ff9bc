"""Adversarial sources: where they start, how they ascend (method.md §5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vpd.decomposition import Site, for_each, site_numbers, source_shape
from vpd.decomposition.masks import Scope
from vpd.objective.adam import adam_direction

Sources = dict[str, Float[Array, "..."]]


@dataclass(frozen=True)
class AdamAscent:
    """``s += lr · m̂ / (√v̂ + eps)``; the bias correction counts ascents."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class SignAscent:
    """``s += lr · sign(g)``."""


class AdversaryState(eqx.Module):
    """Persistent sources as stored (before the sigmoid, where there is one), raw moments, and the ascents made."""

    sources: Sources
    m: Sources
    v: Sources
    ascents: Int[Array, ""]


def source_shapes(
    sites: Sequence[Site], scope: Scope, leading: Sequence[int], use_delta: bool, n_sources: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Stored shape per site: C channels, and one more for the delta where it is on; of a stack with its first axis."""
    return {s.name: (*s.stack, *source_shape(scope, leading, s.C + int(use_delta), n_sources)) for s in sites}


def drawn_sources(
    sites: Sequence[Site],
    shapes: Mapping[str, tuple[int, ...]],
    key: Key[Array, ""],
    draw: Callable[[Key[Array, ""], tuple[int, ...]], Float[Array, "..."]],
) -> Sources:
    """Fresh sources; the draw of each matrix depends on its number among those of ``sites``."""
    numbers = site_numbers(sites)

    def sources(site: Site) -> Float[Array, "..."]:
        shape = shapes[site.name][len(site.stack) :]
        return for_each(site, numbers, lambda n: draw(jax.random.fold_in(key, n), shape))

    return {site.name: sources(site) for site in sites}


def init_adversary(
    sites: Sequence[Site],
    shapes: Mapping[str, tuple[int, ...]],
    key: Key[Array, ""],
    optimizer: AdamAscent | SignAscent,
    sigmoid: bool,
) -> AdversaryState:
    """Sources U[0, 1], or N(0, 1) under the sigmoid parameterisation; zero moments."""
    draw = jax.random.normal if sigmoid else jax.random.uniform
    sources = drawn_sources(sites, shapes, key, draw)
    moments = {s: jnp.zeros(shape) for s, shape in shapes.items()} if isinstance(optimizer, AdamAscent) else {}
    return AdversaryState(sources, moments, dict(moments), jnp.zeros((), jnp.int32))


def effective_sources(stored: Sources, sigmoid: bool) -> Sources:
    """The values in [0, 1] that masks are built from."""
    return {s: jax.nn.sigmoid(x) for s, x in stored.items()} if sigmoid else stored


def clip01(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """To [0, 1]; sources that left it would never come back."""
    return jnp.clip(x, 0.0, 1.0)


def ascend(
    state: AdversaryState,
    gradients: Sources,
    lr: Float[Array, ""] | float,
    optimizer: AdamAscent | SignAscent,
    sigmoid: bool,
) -> AdversaryState:
    """One ascent along the gradient of the loss with respect to the stored sources."""
    bound = (lambda x: x) if sigmoid else clip01
    n = state.ascents + 1
    match optimizer:
        case SignAscent():
            moved = {s: bound(x + lr * jnp.sign(gradients[s])) for s, x in state.sources.items()}
            return AdversaryState(moved, state.m, state.v, n)
        case AdamAscent(beta1=beta1, beta2=beta2, eps=eps):
            direction, m, v = adam_direction(gradients, state.m, state.v, n, (beta1, beta2), eps)
            moved = {s: bound(x + lr * direction[s]) for s, x in state.sources.items()}
            return AdversaryState(moved, m, v, n)
