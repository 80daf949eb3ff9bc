"""Stacks: equal matrices of consecutive layers, held and computed as one site whose arrays have a layer axis."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

SiteKind = Literal["linear", "embedding", "identity"]
Drawn = TypeVar("Drawn")
Stacked = Shaped[Array | np.ndarray, "..."]


@dataclass(frozen=True)
class Span:
    """Consecutive layers of equal shapes.

    Attributes:
        prefix: what their numbers follow, for example ``h`` or ``model.layers``.
        first: number of the first one.
        depth: how many.
    """

    prefix: str
    first: int
    depth: int

    def __str__(self) -> str:
        return f"{self.prefix}.{self.first}-{self.first + self.depth - 1}"


@dataclass(frozen=True)
class Site:
    """One weight matrix chosen for decomposition, or a stack of equal ones.

    Attributes:
        name: its path in the target, for example ``h.0.mlp.c_fc``; of a stack ``h.0-3.mlp.c_fc``.
        d_in: rows of W (the vocabulary size for an embedding).
        d_out: columns of W.
        C: number of subcomponents, of each matrix of a stack.
        kind: ``linear`` (``x @ W``), ``embedding`` (``W[x]``) or ``identity`` (W is the identity, never stored).
        span: the layers of a stack; every array of the site then has a first axis over them.
    """

    name: str
    d_in: int
    d_out: int
    C: int
    kind: SiteKind = "linear"
    span: Span | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        """The axis that precedes all others in the site's arrays: ``(depth,)``, or none."""
        return () if self.span is None else (self.span.depth,)

    @property
    def depth(self) -> int:
        """How many matrices."""
        return 1 if self.span is None else self.span.depth

    @property
    def members(self) -> tuple[str, ...]:
        """The path of each matrix."""
        if self.span is None:
            return (self.name,)
        matrix, span = self.name.removeprefix(f"{self.span}."), self.span
        return tuple(f"{span.prefix}.{i}.{matrix}" for i in range(span.first, span.first + span.depth))


def site_groups(sites: Iterable[Site]) -> list[tuple[Site, ...]]:
    """Consecutive stacks of the same layers together; a site that is no stack is alone."""
    return [tuple(group) for _, group in groupby(sites, key=lambda s: s.span or s.name)]


def members_in_order(sites: Iterable[Site]) -> list[tuple[Site, int, str]]:
    """Every single matrix in numeric layer order: its site, its place in the stack, its path."""
    return [(site, i, site.members[i]) for group in site_groups(sites) for i in range(group[0].depth) for site in group]


def site_numbers(sites: Iterable[Site]) -> dict[str, tuple[int, ...]]:
    """The number of each matrix of a site among all matrices, in numeric layer order: draws depend on it alone."""
    numbers: dict[str, tuple[int, ...]] = {}
    for n, (site, _, _) in enumerate(members_in_order(sites)):
        numbers[site.name] = (*numbers.get(site.name, ()), n)
    return numbers


def for_each(
    site: Site, numbers: Mapping[str, tuple[int, ...]], draw: Callable[[int | Int[Array, ""]], Drawn]
) -> Drawn:
    """What ``draw`` makes of the number of a site; of a stack, of each of its matrices, along a first axis."""
    own = numbers[site.name]
    return draw(own[0]) if site.span is None else jax.vmap(draw)(jnp.asarray(own, jnp.int32))


def unstacked(by_site: Mapping[str, Stacked], sites: Sequence[Site]) -> dict[str, Stacked]:
    """What is known of sites, for each single matrix in numeric layer order; sites that are not named are left out."""
    return {
        name: by_site[site.name] if site.span is None else by_site[site.name][i, ...]
        for site, i, name in members_in_order(sites)
        if site.name in by_site
    }
