"""How a parameter is followed through a program: what is still the same matrix, and where it is used as one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from vpd.decomposition import SiteKind
from vpd.targets.jaxprs import Atom, Operation, shape_of

# The same entries, in another place or another type.
UNCHANGED = frozenset(
    {"convert_element_type", "copy", "copy_p", "sharding_constraint", "stop_gradient", "reduce_precision"}
)
Number = Callable[[Atom], np.ndarray | None]


@dataclass(frozen=True)
class View:
    """A parameter, or a part of it, as a value of the program.

    Attributes:
        leaf: path of the parameter.
        shape: of the value.
        chosen: whether it is to be decomposed.
        axis: of the value along which a stack of matrices lies; None where there is none.
        layer: the one layer that was taken out of a stack, by number.
        loops: how many scans it is the layer of.
        constant: whether this is the same in every iteration of a scan.
        slot: which constant of the scan it is, as long as nothing was done to it.
        direct: whether this is the parameter as it is stored.
    """

    leaf: str
    shape: tuple[int, ...]
    chosen: bool
    axis: int | None = None
    layer: int | None = None
    loops: int = 0
    constant: bool = False
    slot: int | None = None
    direct: bool = True

    @property
    def is_vector(self) -> bool:
        """Whether there is no matrix in it: a bias or the weight of a norm."""
        return len(self.shape) < 2 or sum(size > 1 for size in self.shape) < 2

    def moved(self, shape: Sequence[int], axis: int | None) -> "View":
        """The same parameter in another shape."""
        return replace(self, shape=tuple(shape), axis=axis, direct=False, slot=None)


def follow(operation: Operation, view: View, number: Number) -> list[View] | None:
    """What an operation makes of a view, one for each of its results; None where it is more than another view.

    Args:
        operation: whose first input is the view.
        view: of a parameter.
        number: what an atom is, where that is one integer whatever the data.
    """
    params, after = operation.params, shape_of(operation.outputs[0])
    match operation.name:
        case name if name in UNCHANGED:
            same = name != "convert_element_type" and name != "reduce_precision"
            return [view if same else view.moved(after, view.axis)]
        case "transpose":
            order = _numbers(params["permutation"])
            return [view.moved(after, None if view.axis is None else order.index(view.axis))]
        case "reshape":
            return [view.moved(after, _kept_axis(view, after))]
        case "broadcast_in_dim" if math.prod(after) == math.prod(view.shape):
            places = _numbers(params["broadcast_dimensions"])
            return [view.moved(after, None if view.axis is None else places[view.axis])]
        case "squeeze":
            gone = _numbers(params["dimensions"])
            axis = view.axis
            kept = None if axis is None or axis in gone else axis - sum(d < axis for d in gone)
            return [view.moved(after, kept)]
        case "slice":
            starts, limits = _numbers(params["start_indices"]), _numbers(params["limit_indices"])
            steps = _numbers(params["strides"] or (1,) * len(starts))
            return [_part(view, after, starts, steps)] if limits else [view]
        case "dynamic_slice":
            starts = [number(atom) for atom in operation.inputs[1:]]
            # Where a whole axis is taken the start is 0, whatever is written.
            starts = [np.asarray(0) if a == b else s for s, a, b in zip(starts, after, view.shape, strict=True)]
            if any(start is None or start.ndim for start in starts):
                return None
            numbers = [int(start) for start in starts if start is not None]
            inside = [min(max(n, 0), b - a) for n, a, b in zip(numbers, after, view.shape, strict=True)]
            return [_part(view, after, inside, [1] * len(after))]
        case "split":
            axis, sizes = params["axis"], _numbers(params["sizes"])
            assert isinstance(axis, int)
            kept = None if axis == view.axis else view.axis
            return [view.moved(shape_of(out), kept) for out in operation.outputs[: len(sizes)]]
        case _:
            return None


def _part(view: View, after: tuple[int, ...], starts: Sequence[int], steps: Sequence[int]) -> View:
    """A part of a view: one layer of a stack, or any other rectangle."""
    cut = [i for i, (a, b) in enumerate(zip(after, view.shape, strict=True)) if a != b]
    if not cut and all(step == 1 for step in steps):
        return view
    one_layer = cut == [0] and after[0] == 1 and len(after) > 2 and view.layer is None and not view.loops
    kept = None if view.axis in cut else view.axis
    part = view.moved(after, kept)
    return replace(part, layer=starts[0]) if one_layer else part


def _kept_axis(view: View, after: tuple[int, ...]) -> int | None:
    """Where the axis of a stack is after a reshape, if it is still one."""
    if view.axis is None:
        return None
    before, size = math.prod(view.shape[: view.axis]), view.shape[view.axis]
    fits = [i for i, n in enumerate(after) if n == size and math.prod(after[:i]) == before]
    return fits[0] if fits else None


def _numbers(found: object) -> tuple[int, ...]:
    assert isinstance(found, Sequence)
    return tuple(int(n) for n in found)


class Matrix(NamedTuple):
    """How an operation uses a weight as a matrix: its axes, and those of the other operand.

    Attributes:
        kind: a product or a lookup.
        side: 0 where the weight is the first operand, else 1.
        rows: axes of the weight that are contracted or looked up, in its own order.
        columns: its other axes.
        stack: its axis that is a batch axis of the product, or free where it is declared as a stack.
        x_contracted: axes of the other operand, in the order of ``rows``.
        x_leading: its other axes.
        x_stack: its axis that goes with ``stack``.
    """

    kind: SiteKind
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stack: int | None
    x_contracted: tuple[int, ...]
    x_leading: tuple[int, ...]
    x_stack: int | None


def product(operation: Operation, side: int, view: View) -> Matrix | None:
    """A ``dot_general`` with a weight on one side; None where the weight has batch axes that are not its stack's."""
    numbers = operation.params["dimension_numbers"]
    assert isinstance(numbers, tuple)
    (contracted, batch) = numbers
    own, other = _numbers(contracted[side]), _numbers(contracted[1 - side])
    own_batch, other_batch = _numbers(batch[side]), _numbers(batch[1 - side])
    if own_batch not in ((), (view.axis,)):
        return None
    stack = view.axis if view.axis is not None and view.axis not in own else None
    rows = tuple(sorted(own))
    columns = tuple(i for i in range(len(view.shape)) if i not in own and i != stack)
    x_contracted = tuple(other[own.index(i)] for i in rows)
    x_rank = len(shape_of(operation.inputs[1 - side]))
    x_leading = tuple(i for i in range(x_rank) if i not in other and i not in other_batch)
    x_stack = other_batch[0] if other_batch else None
    return Matrix("linear", side, rows, columns, stack, x_contracted, x_leading, x_stack)


class Rows(NamedTuple):
    """How a ``gather`` looks whole rows of a matrix up.

    Attributes:
        axis: of the weight that is looked up along.
        place: of the row's number in the last axis of the indices.
        kept: whether the axis stays, with one entry.
        places: axes of the output along which a row lies, in the order of the weight's axes.
    """

    axis: int
    place: int
    kept: bool
    places: tuple[int, ...]


def rows_of(operation: Operation) -> Rows | None:
    """The lookup that a ``gather`` is; None where it takes anything but whole rows, or columns, by one index."""
    numbers, params = operation.params["dimension_numbers"], operation.params
    start, collapsed = _attribute(numbers, "start_index_map"), _attribute(numbers, "collapsed_slice_dims")
    shape, sizes = shape_of(operation.inputs[0]), _numbers(params["slice_sizes"])
    parts = [i for i, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size]
    # Where a whole axis is taken, its index is moved to 0.
    clipped = len(start) == 1 or not str(params["mode"]).endswith(("FILL_OR_DROP", "fill"))
    if len(parts) != 1 or sizes[parts[0]] != 1 or parts[0] not in start or not clipped:
        return None
    (axis,) = parts
    if collapsed not in ((), (axis,)) or _attribute(numbers, "operand_batching_dims"):
        return None
    return Rows(axis, start.index(axis), not collapsed, _attribute(numbers, "offset_dims"))


def lookup(operation: Operation, view: View) -> Matrix | None:
    """A ``gather`` of whole rows (or columns) of a weight by index; None where it is another gather."""
    rows = rows_of(operation)
    if rows is None or view.axis is not None:
        return None
    columns = tuple(i for i in range(len(view.shape)) if i != rows.axis)
    leading = tuple(range(len(shape_of(operation.inputs[1])) - 1))
    return Matrix("embedding", 0, (rows.axis,), columns, None, (), leading, None)


def _attribute(numbers: object, name: str) -> tuple[int, ...]:
    return _numbers(getattr(numbers, name))
