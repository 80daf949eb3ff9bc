"""Where the parts of a run live: the mesh that its run file asks for, and the sharding of target and state."""

import math
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jax.tree_util import DictKey, GetAttrKey
from jaxtyping import Array

from vpd.config.block import refusal
from vpd.config.run import Mesh, Runtime
from vpd.objective.total import persistent_terms
from vpd.placement import AXES, Placement, mesh_of
from vpd.training.state import TrainState
from vpd.training.step import Problem

# Scopes in which every example of the batch has sources of its own.
OWN = ("bc", "bsc")


def placement_from(runtime: Runtime, batch_size: int, say: Callable[[str], None] = lambda _: None) -> Placement | None:
    """The placement that a run file asks for on the devices that are there; None for a run on a single one.

    Args:
        runtime: of the run file.
        batch_size: the global one.
        say: told where fewer devices are used than there are, or than were asked for.

    Raises:
        ConfigError: a mesh that does not fit the devices or the batch.
    """
    sizes = mesh_sizes(runtime, batch_size, len(jax.devices()), say)
    if math.prod(sizes) == 1:
        return None
    return Placement(mesh_of(sizes), runtime.placement)


def mesh_sizes(
    runtime: Runtime, batch_size: int, there: int, say: Callable[[str], None] = lambda _: None
) -> tuple[int, ...]:
    """Devices along each axis of the mesh that a run file asks for, where so many are there.

    Without a mesh a run takes as many devices as divide its batch: along ``fsdp`` where that splits parameters, else
    along ``data``. Arguments and errors as of :func:`placement_from`.
    """
    if runtime.mesh:
        return _asked(runtime.mesh, batch_size, there)
    n = min(there, runtime.dp or there)
    n = max(k for k in range(1, n + 1) if batch_size % k == 0)
    if n < (runtime.dp or there):
        said = f"runtime.dp asks for {runtime.dp} devices" if runtime.dp else f"there are {there} devices"
        say(f"{said}; the run uses {n} of {there}, which divide pd.batch_size {batch_size}")
    return (n, 1, 1) if runtime.placement == "ddp" else (1, n, 1)


def _asked(mesh: Mesh, batch_size: int, there: int) -> tuple[int, ...]:
    """Devices along each axis, those that are left included."""
    shown = ", ".join(f"{axis}: {size}" for axis, size in mesh.sizes.items())
    sizes = [mesh.sizes[axis] for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    if known > there or (-1 in sizes and there % known):
        said = f"{{{shown}}} does not fit the devices that are there, of which there are {there}"
        raise refusal("runtime.mesh", said, "write sizes whose product is at most that, or -1 for what is left")
    found = tuple(there // known if size == -1 else size for size in sizes)
    if batch_size % (found[0] * found[1]):
        said = (
            f"{{{shown}}} splits pd.batch_size {batch_size} into {found[0] * found[1]} parts, which does not divide it"
        )
        raise refusal("runtime.mesh", said, "write data and fsdp whose product divides it")
    return found


def state_shardings(placement: Placement, problem: Problem, template: TrainState) -> TrainState:
    """The sharding of every array of a state, in its place.

    Args:
        placement: the mesh and its preset.
        problem: whose sites and persistent terms the state is of.
        template: structure and shapes.
    """
    scopes = {name: spec.scope for name, (_, spec) in persistent_terms(problem.terms).items()}
    stacked = {site.name: len(site.stack) for site in problem.sites}

    def sharding(path: tuple[object, ...], leaf: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        head = path[-2:] == (GetAttrKey("head"), GetAttrKey("W"))
        match path:
            case (GetAttrKey(name="decomposition"), *_):
                return placement.parameter("master", leaf.shape, head)
            case (_, GetAttrKey(name="components_optimizer" | "ci_fn_optimizer"), *_):
                return placement.parameter("moment", leaf.shape, head)
            case (_, GetAttrKey(name="adversaries"), DictKey(key=term), _, DictKey(key=site)) if scopes[term] in OWN:
                return placement.split_batch(leaf.shape, stacked[site])
            case _:
                return placement.whole()

    return jax.tree_util.tree_map_with_path(sharding, template)
