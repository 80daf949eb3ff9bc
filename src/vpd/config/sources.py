"""Shapes of adversarial sources and routings, with the older names they have in stored files."""

from typing import Annotated, Literal

from pydantic import Field

from vpd.config.block import Block
from vpd.config.values import Count, Fraction

ScopeType = Literal["c", "sc", "bc", "bsc", "nsc"]


class UniformKSubset(Block):
    """Per position: k uniform in 1..sites, then a uniform k-subset of the sites is masked."""

    type: Literal["uniform_k_subset"] = "uniform_k_subset"
    """Kind of routing."""


class StaticProbability(Block):
    """Per position and site: masked with probability p."""

    type: Literal["static_probability"]
    """Kind of routing."""
    p: Fraction
    """Probability that a site is masked."""


Routing = Annotated[UniformKSubset | StaticProbability, Field(discriminator="type")]

# method.md §5. On a target without a sequence axis the older names for shapes with one lose that axis.
_OLDER: dict[str, ScopeType] = {
    "single_source": "c",
    "shared_across_batch": "c",
    "broadcast_across_batch": "sc",
    "repeat_across_batch": "nsc",
    "per_batch_per_position": "bsc",
    "unique_per_datapoint": "bsc",
}
_WITHOUT_SEQUENCE: dict[ScopeType, ScopeType] = {"sc": "c", "bsc": "bc"}
_CANONICAL: dict[str, ScopeType] = {"c": "c", "sc": "sc", "bc": "bc", "bsc": "bsc", "nsc": "nsc"}

MaskScope = Literal[
    "c",
    "sc",
    "bc",
    "bsc",
    "single_source",
    "shared_across_batch",
    "broadcast_across_batch",
    "per_batch_per_position",
    "unique_per_datapoint",
]


class Scope(Block):
    """The axes along which sources differ: channel, batch element, sequence position."""

    inactive_keys = frozenset({"n_sources"})

    type: MaskScope
    """c, sc, bc or bsc; the longer names are older aliases."""


class RepeatedScope(Block):
    """n sources tiled over the batch: element b uses source b mod n."""

    type: Literal["nsc", "repeat_across_batch"]
    """nsc; repeat_across_batch is an older alias."""
    n_sources: Annotated[Count, Field(examples=[8])]
    """Number of sources; divides the batch size."""


AnyScope = Annotated[Scope | RepeatedScope, Field(discriminator="type")]


def resolved_scope(scope: Scope | RepeatedScope | str, has_sequence: bool) -> tuple[ScopeType, int | None]:
    """The canonical shape that a scope or `mask_scope` means on a target with or without a sequence axis.

    Returns: the canonical type, and the number of sources (nsc only).
    """
    written = scope if isinstance(scope, str) else scope.type
    n_sources = scope.n_sources if isinstance(scope, RepeatedScope) else None
    if written in _CANONICAL:
        return _CANONICAL[written], n_sources
    shape = _OLDER[written]
    return (shape if has_sequence else _WITHOUT_SEQUENCE.get(shape, shape)), n_sources


def needs_sequence(scope: Scope | RepeatedScope | str) -> bool:
    """Whether a scope is written with a canonical name that has a position axis of its own."""
    return (scope if isinstance(scope, str) else scope.type) in ("sc", "bsc")
