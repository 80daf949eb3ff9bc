"""Where arrays live: a mesh of named axes, and one table from the role of an array to its partition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

Tree = TypeVar("Tree")
Preset = Literal["ddp", "zero", "fsdp"]
Role = Literal["frozen", "master", "moment"]

AXES = ("data", "fsdp", "model")
# The batch is split over both: a device that holds a part of the parameters computes a part of the batch.
BATCH = ("data", "fsdp")

# The table: the roles that are split over `fsdp` and `model`; others are whole on every device. Activations, batches
# and sources that every example has of its own are split along the batch under every preset.
SPLIT: dict[Preset, frozenset[Role]] = {
    "ddp": frozenset(),
    "zero": frozenset({"master", "moment"}),
    "fsdp": frozenset({"master", "moment", "frozen"}),
}


@dataclass(frozen=True)
class Placement:
    """A mesh, and what is split over it.

    Attributes:
        mesh: devices along :data:`AXES`.
        preset: row of :data:`SPLIT`.
    """

    mesh: Mesh
    preset: Preset = "ddp"

    @property
    def batch_shards(self) -> int:
        """Parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH)

    def whole(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split_batch(self, shape: Sequence[int], axis: int = 0) -> NamedSharding:
        """Split along the batch, which is this axis; whole where it can't be split evenly."""
        even = shape[axis] % self.batch_shards == 0
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, BATCH)) if even else self.whole()

    def own_rows(self, batch_size: int) -> tuple[int, int]:
        """The first row of a batch that this process's devices hold a part of, and the one after the last."""
        held = self.split_batch((batch_size,)).addressable_devices_indices_map((batch_size,)).values()
        ends = [index[0].indices(batch_size) for index in held if index is not None]
        return min(first for first, _, _ in ends), max(end for _, end, _ in ends)

    def parameter(self, role: Role, shape: Sequence[int], in_parts: bool = False) -> NamedSharding:
        """Of one array: the longest axis that `fsdp` divides is split over it, the longest other one over `model`.

        Args:
            role: row of the table.
            shape: of the array.
            in_parts: whether its last axis is used part by part (:func:`parts_of_columns`), and so is split last.
        """
        axes: list[str | None] = [None] * len(shape)
        for name in ("fsdp", "model") if role in SPLIT[self.preset] else ():
            parts = self.mesh.shape[name]
            free = [(size, i) for i, size in enumerate(shape) if axes[i] is None and size % parts == 0]
            if in_parts and len(free) > 1:
                free = [(size, i) for size, i in free if i < len(shape) - 1]
            if parts > 1 and free:
                axes[max(free)[1]] = name
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def parameters(self, role: Role, tree: Tree) -> Tree:
        """A tree of arrays, real or abstract, with the sharding of each in its place."""
        return jax.tree.map(lambda leaf: self.parameter(role, leaf.shape), tree)


def mesh_of(sizes: Sequence[int]) -> Mesh:
    """A mesh of so many devices along each of :data:`AXES`; neighbours along the last axes are near each other."""
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[: math.prod(sizes)]
    )


def put(tree: Tree, shardings: object) -> Tree:
    """Arrays that every process holds whole, where they belong: each process gives what its devices hold."""

    def one(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def parts_of_columns() -> int:
    """Into how many parts a wide matrix is cut, so that what is gathered of it at a time is no larger than a share."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["fsdp"]


def whole_everywhere(tree: Tree) -> Tree:
    """Arrays within a program, gathered where a mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def along_batch(x: Array, axis: int = 0) -> Array:
    """An activation within a program, split along the batch where a mesh is set; as it is without one.

    Told so, the compiler gathers split parameters where they are used. Else it may split what they are multiplied by.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[axis] % math.prod(mesh.shape[name] for name in BATCH):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, BATCH))
