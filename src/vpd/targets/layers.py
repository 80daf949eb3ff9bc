"""Layers of one shape, stacked along their first axis so that the program does not grow with depth."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from vpd.decomposition import SiteKind, Span

Tree = TypeVar("Tree")
Leaf = Shaped[Array, "..."] | jax.ShapeDtypeStruct

# A scan of so few layers is unrolled: its slices and stacks then cost nothing.
UNROLLED = 4


@dataclass(frozen=True)
class Run:
    """Consecutive layers that are computed alike.

    Attributes:
        stack: their weights along a first axis.
        prefix: of their paths.
        first: number of the first.
        depth: how many.
    """

    stack: PyTree
    prefix: str
    first: int
    depth: int

    @property
    def span(self) -> Span:
        """The layers, as a stack of sites names them."""
        return Span(self.prefix, self.first, self.depth)

    @property
    def unroll(self) -> int:
        """Iterations of the scan that are written out."""
        return self.depth if self.depth <= UNROLLED else 1

    def layer(self, i: int) -> PyTree:
        """The weights of one of them."""
        return jax.tree.map(lambda leaf: leaf[i], self.stack)


class Layers(eqx.Module):
    """All layers of a network.

    Attributes:
        runs: stacks of consecutive layers, cut where the decomposition changes.
        prefix: of their paths: layer i is ``<prefix>.i``.
    """

    runs: tuple[PyTree, ...]
    prefix: str = eqx.field(static=True)

    def __iter__(self) -> Iterator[Run]:
        """The runs, each with the number of its first layer."""
        first = 0
        for stack in self.runs:
            depth = jax.tree.leaves(stack)[0].shape[0]
            yield Run(stack, self.prefix, first, depth)
            first += depth

    @property
    def depth(self) -> int:
        """How many layers."""
        return sum(run.depth for run in self)

    def matrices(self, fields: Mapping[str, str]) -> dict[str, tuple[int, int, SiteKind]]:
        """``{path: (d_in, d_out, kind)}`` of every layer's matrices, by their paths in a layer and their fields."""
        shapes = {path: getattr(self.runs[0], field).shape[1:] for path, field in fields.items()}
        return {
            f"{self.prefix}.{i}.{path}": (d_in, d_out, "linear")
            for i in range(self.depth)
            for path, (d_in, d_out) in shapes.items()
        }

    def split(self, alone: Callable[[int], bool]) -> list[Run]:
        """The runs, in which layers of which ``alone`` holds are runs by themselves."""
        found: list[Run] = []
        for run in self:
            numbers = range(run.first, run.first + run.depth)
            cuts = {run.first} | {i + after for i in numbers if alone(i) for after in (0, 1)}
            found += _cut(run, cuts)
        return found

    def cut(self, firsts: Iterable[int]) -> "Layers":
        """The same layers in runs that begin at these layers."""
        whole = self.whole
        cuts = set(firsts) | {0}
        return Layers(tuple(run.stack for run in _cut(Run(whole, self.prefix, 0, self.depth), cuts)), self.prefix)

    @property
    def whole(self) -> PyTree:
        """All layers as one stack."""
        if len(self.runs) == 1:
            return self.runs[0]
        return jax.tree.map(_joined, *self.runs)


def _cut(run: Run, cuts: set[int]) -> list[Run]:
    end = run.first + run.depth
    firsts = sorted(i for i in cuts | {run.first} if run.first <= i < end)
    if len(firsts) == 1:
        return [run]
    found: list[Run] = []
    for a, b in zip(firsts, [*firsts[1:], end], strict=True):
        stack = jax.tree.map(partial(_rows, first=a - run.first, end=b - run.first), run.stack)
        found.append(Run(stack, run.prefix, a, b - a))
    return found


# Weights may be shapes alone (``jax.ShapeDtypeStruct``): a program is then compiled for a network nobody has loaded.


def _rows(leaf: Leaf, first: int, end: int) -> Leaf:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((end - first, *leaf.shape[1:]), leaf.dtype)
    return leaf[first:end]


def _joined(*parts: Leaf) -> Leaf:
    arrays = [part for part in parts if not isinstance(part, jax.ShapeDtypeStruct)]
    if len(arrays) == len(parts):
        return jnp.concatenate(arrays)
    return jax.ShapeDtypeStruct((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].dtype)


class Resume(eqx.Module):
    """Where masked forwards begin, and what flows into that point.

    Attributes:
        h: ``[*leading, d]``, from the clean forward.
        prefix: of the layers.
        first: number of the layer.
        part: of the layer.
    """

    h: Shaped[Array, "..."]
    prefix: str = eqx.field(static=True)
    first: int = eqx.field(static=True)
    part: int = eqx.field(static=True)


def layers_of(target: PyTree) -> list[Layers]:
    """Every stack of layers that a target scans over."""
    found = jax.tree.leaves(target, is_leaf=lambda node: isinstance(node, Layers))
    return [node for node in found if isinstance(node, Layers)]


def whole_arrays(target: PyTree) -> Iterator[tuple[tuple[int, ...], list[Array]]]:
    """Shape of each array of a target, and its parts along the first axis: the same whatever its layers are cut into.

    Nothing is copied.
    """
    for node in jax.tree.leaves(target, is_leaf=lambda node: isinstance(node, Layers)):
        runs = [jax.tree.leaves(run) for run in node.runs] if isinstance(node, Layers) else [[node]]
        for parts in zip(*runs, strict=True):
            depth = sum(part.shape[0] for part in parts) if isinstance(node, Layers) else None
            yield (parts[0].shape if depth is None else (depth, *parts[0].shape[1:])), list(parts)


def with_cuts(target: Tree, firsts: Callable[[Layers], Iterable[int]]) -> Tree:
    """The same target, its layers cut into runs."""

    def cut(node: PyTree) -> PyTree:
        return node.cut(firsts(node)) if isinstance(node, Layers) else node

    return jax.tree.map(cut, target, is_leaf=lambda node: isinstance(node, Layers))
