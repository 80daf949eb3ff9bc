"""The walk through a program that finds where chosen parameters are used, and refuses what can't be decomposed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any  # what a block is made of, passed on
from typing import Literal as Choice

import numpy as np

from vpd.errors import TraceError
from vpd.targets.jaxprs import (
    CALLS,
    REMATS,
    RULES,
    Atom,
    Code,
    Literal,
    Operation,
    ScanParts,
    Var,
    branches,
    called,
    holds_code,
    scan_parts,
    shape_of,
    source_line,
)
from vpd.targets.numbers import Numbers, Thunk, in_body
from vpd.targets.views import Matrix, View, follow, lookup, product

_ELSE = "choose other parameters, with a narrower glob"


@dataclass(eq=False)
class Stack:
    """Layers that the program scans over, or experts that it runs side by side.

    Attributes:
        depth: how many.
        kind: which of the two.
        leaves: paths of the parameters that have one part a layer.
        stored: of those that are scanned as they are stored, the decomposed ones.
        prefix: of the names, given when all are known.
    """

    depth: int
    kind: Choice["layers", "experts"]
    leaves: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    prefix: str = ""


@dataclass(eq=False)
class Use:
    """One use of a parameter as a matrix: a site.

    Attributes:
        leaf: path of the parameter.
        matrix: its axes.
        d_in: rows.
        d_out: columns.
        leading: shape of the positions, in the order of the program.
        layer: where it is one layer of a stored stack that the program unrolls.
        stack: the layers or experts it is one of.
        name: of the site, within a stack what follows the layer's own path; given when all are known.
        first: which axis of the positions is the batch.
    """

    leaf: str
    matrix: Matrix
    d_in: int
    d_out: int
    leading: tuple[int, ...]
    layer: int | None = None
    stack: Stack | None = None
    name: str = ""
    first: int = 0


@dataclass(frozen=True, eq=False)
class Plain:
    """An operation without a site in it."""

    operation: Operation


@dataclass(frozen=True, eq=False)
class AtSite:
    """A product or a lookup that goes through the seam."""

    operation: Operation
    use: Use


@dataclass(frozen=True, eq=False)
class Inlined:
    """A call whose program holds sites; ``again`` where it is computed again in the backward pass."""

    operation: Operation
    block: "Block"
    again: bool


@dataclass(frozen=True, eq=False)
class Switch:
    """A ``cond`` whose branches hold sites: all are computed."""

    operation: Operation
    blocks: tuple["Block", ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """A scan over layers that hold sites.

    Attributes:
        operation: the scan.
        parts: its layout.
        block: its body.
        stack: the layers.
        stored: of its inputs, those that are a parameter as it is stored: ``{input: path}``.
        picked: of its inputs, constants from which the body takes one layer at a time.
        returned: outputs of the body, after what it carries, that are an input as it came: ``{output: input}``.
    """

    operation: Operation
    parts: ScanParts
    block: "Block"
    stack: Stack
    stored: dict[int, str]
    picked: tuple[int, ...]
    returned: dict[int, int]


@dataclass(frozen=True, eq=False)
class Pick:
    """``w[i]`` in the body of a loop, i its counter."""

    operation: Operation
    slot: int


Step = Plain | AtSite | Inlined | Switch | Loop | Pick


@dataclass(frozen=True, eq=False)
class Block:
    """A program as steps."""

    code: Code
    steps: tuple[Step, ...]
    views: tuple[View | None, ...]
    moving: tuple[bool, ...]


@dataclass(eq=False)
class _LoopScope:
    """The scan that a program is in the body of."""

    length: int
    stack: Stack
    picked: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Walk:
    """What a walk knows and has found.

    Attributes:
        exact: leaves that were chosen by their own path.
        inline_rules: whether a site may lie inside a custom derivative, which is then lost.
        uses: in program order.
        stacks: likewise.
        vectors: chosen leaves that have no matrix in them.
        passed_over: chosen leaves that are batched, undeclared.
        enclosing: the calls that the walk is in.
    """

    exact: frozenset[str]
    inline_rules: bool
    uses: list[Use] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    vectors: set[str] = field(default_factory=set)
    passed_over: set[str] = field(default_factory=set)
    enclosing: list[Operation] = field(default_factory=list)

    def refusal(self, leaf: str, operation: Operation, what: str, way_out: str) -> TraceError:
        """The one shape of a refusal: parameter, reason, operation, source line, way out."""
        line = source_line(operation, self.enclosing)
        return TraceError(f"{leaf} {what} ({operation.name} at {line}); {way_out}")

    def within(self, operation: Operation, *given: Any) -> "Block":
        """As :meth:`block`, for a program that an operation holds."""
        self.enclosing.append(operation)
        found = self.block(*given)
        self.enclosing.pop()
        return found

    def block(
        self,
        code: Code,
        given: Sequence[View | None],
        moving: Sequence[bool],
        thunks: Sequence[Thunk | None],
        loop: _LoopScope | None = None,
    ) -> Block:
        """The steps of a program.

        Args:
            code: the program.
            given: of its inputs, which are views of parameters.
            moving: which depend on the batch.
            thunks: what is known of them as numbers.
            loop: the scan whose body this is in.
        """
        numbers = Numbers(code, {v: t for v, t in zip(code.inputs, thunks, strict=True) if t is not None})
        scope = _Scope(self, numbers, loop)
        scope.views = {v: view for v, view in zip(code.inputs, given, strict=True) if view is not None}
        scope.moving = {v for v, moves in zip(code.inputs, moving, strict=True) if moves}
        steps = tuple(scope.step(operation) for operation in code.operations)
        views = tuple(scope.view(atom) for atom in code.outputs)
        return Block(code, steps, views, tuple(scope.moves(atom) for atom in code.outputs))


class _Scope:
    """One program on the way."""

    def __init__(self, walk: Walk, numbers: Numbers, loop: _LoopScope | None) -> None:
        self.walk, self.numbers, self.loop = walk, numbers, loop
        self.views: dict[Var, View] = {}
        self.moving: set[Var] = set()

    def view(self, atom: Atom) -> View | None:
        return None if isinstance(atom, Literal) else self.views.get(atom)

    def moves(self, atom: Atom) -> bool:
        return not isinstance(atom, Literal) and atom in self.moving

    def step(self, op: Operation) -> Step:
        if any(self.moves(atom) for atom in op.inputs):
            self.moving |= set(op.outputs)
        views = [self.view(atom) for atom in op.inputs]
        if not any(view is not None for view in views):
            return Plain(op)
        if op.name == "scan":
            return self._scan(op, views)
        if op.name == "cond":
            return self._switch(op, views)
        if op.name in CALLS | REMATS | RULES:
            return self._call(op, views)
        first = views[0]
        if first is not None:
            pick = self._pick(op, first)
            if pick is not None:
                return pick
            followed = follow(op, first, self.numbers.single)
            if followed is not None:
                self.views |= dict(zip(op.outputs, followed, strict=True))
                return Plain(op)
        return self._used(op, views)

    def _pick(self, op: Operation, view: View) -> Pick | None:
        """``w[i]`` with the counter of the loop: the layer of a stack."""
        if op.name != "dynamic_slice" or self.loop is None or view.slot is None:
            return None
        index, after = self.numbers.of(op.inputs[1]), shape_of(op.outputs[0])
        length = self.loop.length
        one_layer = after == (1, *view.shape[1:]) and view.shape[0] == length
        if index is None or not index.turns or not one_layer or not np.array_equal(index.value, np.arange(length)):
            return None
        if view.slot not in self.loop.picked:
            self.loop.picked.append(view.slot)
        slot = self.loop.picked.index(view.slot)
        self.views[op.outputs[0]] = replace(view.moved(after, None), constant=False, loops=view.loops + 1)
        return Pick(op, slot)

    def _call(self, op: Operation, views: Sequence[View | None]) -> Step:
        code, before = called(op), len(self.walk.uses)
        thunks = [self.numbers.thunk(atom) for atom in op.inputs]
        block = self.walk.within(op, code, views, [self.moves(atom) for atom in op.inputs], thunks, self.loop)
        for out, view in zip(op.outputs, block.views, strict=True):
            if view is not None:
                self.views[out] = view
        found = self.walk.uses[before:]
        if not found and not _picks(block):
            return Plain(op)
        if op.name in RULES and found and not self.walk.inline_rules:
            raise self.walk.refusal(
                found[0].leaf,
                op,
                "is used inside a function with a derivative rule of its own, which would be lost",
                "choose other parameters, or write inline_custom_rules=True to differentiate the function itself",
            )
        return Inlined(op, block, op.name in REMATS)

    def _switch(self, op: Operation, views: Sequence[View | None]) -> Step:
        before, given = len(self.walk.uses), op.inputs[1:]
        moving = [self.moves(atom) for atom in given]
        thunks = [self.numbers.thunk(atom) for atom in given]
        blocks = [self.walk.within(op, code, views[1:], moving, thunks, self.loop) for code in branches(op)]
        self._refuse_escape(op, [view for block in blocks for view in block.views], "leaves a branch as it is")
        return Switch(op, tuple(blocks)) if self.walk.uses[before:] or any(map(_picks, blocks)) else Plain(op)

    def _scan(self, op: Operation, views: Sequence[View | None]) -> Step:
        parts, before = scan_parts(op), len(self.walk.uses)
        end = parts.n_consts + parts.n_carry
        self._refuse_escape(op, views[parts.n_consts : end], "is carried through a loop")
        stack = Stack(parts.length, "layers")
        loop = _LoopScope(parts.length, stack)
        inner: list[View | None] = []
        for i, view in enumerate(views):
            if view is None or parts.n_consts <= i < end:
                inner.append(None)
            elif i < parts.n_consts:
                inner.append(replace(view, constant=True, slot=i))
            else:
                axis = None if not view.axis else view.axis - 1
                inner.append(replace(view.moved(view.shape[1:], axis), loops=view.loops + 1))
        moving = [self.moves(atom) for atom in op.inputs]
        # What is carried may come to depend on the batch in any iteration.
        moving = [moves or (any(moving) and parts.n_consts <= i < end) for i, moves in enumerate(moving)]
        known = in_body(parts, self.numbers, op.inputs)
        block = self.walk.within(op, parts.body, inner, moving, [known.get(v) for v in parts.body.inputs], loop)
        # Some libraries hand every layer's parameters back.
        entered = {id(view): i for i, view in enumerate(inner) if view is not None and i >= end}
        ys = block.views[parts.n_carry :]
        returned = {k: entered[id(view)] for k, view in enumerate(ys) if id(view) in entered}
        others = [view for k, view in enumerate(ys) if k not in returned]
        self._refuse_escape(op, [*block.views[: parts.n_carry], *others], "leaves a loop as it is")
        for k, i in returned.items():
            outer = views[i]
            assert outer is not None
            self.views[op.outputs[parts.n_carry + k]] = outer
        found = self.walk.uses[before:]
        if not found:
            return Plain(op)
        layered = [*loop.picked, *range(end, len(views))]
        entering = {i: view for i in layered if (view := views[i]) is not None}
        stack.leaves = list(dict.fromkeys(view.leaf for view in entering.values()))
        used = {use.leaf for use in found}
        stored = {i: v.leaf for i, v in entering.items() if v.direct and v.chosen and v.leaf in used}
        stack.stored = list(dict.fromkeys(stored.values()))
        self.walk.stacks.append(stack)
        return Loop(op, parts, block, stack, stored, tuple(loop.picked), returned)

    def _refuse_escape(self, op: Operation, views: Sequence[View | None], what: str) -> None:
        for view in views:
            if view is not None and self._matters(view):
                raise self.walk.refusal(view.leaf, op, what, _ELSE)

    def _matters(self, view: View) -> bool:
        """Whether this is to be decomposed; a vector that a wildcard took along is let go."""
        if not view.chosen:
            return False
        if view.is_vector and view.leaf not in self.walk.exact:
            self.walk.vectors.add(view.leaf)
            return False
        return True

    def _used(self, op: Operation, views: Sequence[View | None]) -> Step:
        """An operation that makes something else of a parameter: a site, or a refusal."""
        chosen = [i for i, view in enumerate(views) if view is not None and self._matters(view)]
        if not chosen:
            return Plain(op)
        side, view = chosen[0], views[chosen[0]]
        assert view is not None
        if view.is_vector:
            raise self.walk.refusal(view.leaf, op, "has no matrix in it", _ELSE)
        if op.name in ("add", "sub") and view.leaf not in self.walk.exact and self.moves(op.inputs[1 - side]):
            # Added to an activation: a bias in the shape of a matrix, as attention heads have.
            self.walk.vectors.add(view.leaf)
            return Plain(op)
        if op.name == "dot_general":
            return self._product(op, view, side, views[1 - side])
        if op.name == "gather" and side == 0:
            return self._lookup(op, view)
        raise self.walk.refusal(view.leaf, op, _why(op), _ELSE)

    def _product(self, op: Operation, view: View, side: int, other: View | None) -> Step:
        if other is not None:
            raise self.walk.refusal(view.leaf, op, f"is multiplied by another parameter, {other.leaf}", _ELSE)
        if not self.moves(op.inputs[1 - side]):
            raise self.walk.refusal(view.leaf, op, "is multiplied by what does not depend on the batch", _ELSE)
        matrix = product(op, side, view)
        if matrix is None:
            self.walk.passed_over.add(view.leaf)
            warnings.warn(
                f"{self.walk.refusal(view.leaf, op, 'is several matrices in one array', 'it is not decomposed')}: "
                f"say along which axis they lie, for example stack_axes={{{view.leaf!r}: 0}}",
                stacklevel=2,
            )
            return Plain(op)
        if view.axis is not None and matrix.stack is None:
            raise self.walk.refusal(
                view.leaf, op, "is summed over the axis declared in stack_axes", "leave it out of stack_axes"
            )
        return self._site(op, view, matrix)

    def _lookup(self, op: Operation, view: View) -> Step:
        matrix = lookup(op, view)
        if matrix is None:
            raise self.walk.refusal(view.leaf, op, "is looked up by other than whole rows", _ELSE)
        if not self.moves(op.inputs[1]):
            raise self.walk.refusal(view.leaf, op, "is looked up by indices that do not depend on the batch", _ELSE)
        return self._site(op, view, matrix)

    def _site(self, op: Operation, view: View, matrix: Matrix) -> AtSite:
        if view.constant:
            raise self.walk.refusal(view.leaf, op, "is the same matrix in every iteration of a loop", _ELSE)
        if view.loops > 1 or (view.loops and matrix.stack is not None) or (self.loop is not None and not view.loops):
            raise self.walk.refusal(view.leaf, op, "is stacked along more than one axis", _ELSE)
        stack = self.loop.stack if self.loop is not None and view.loops else None
        if matrix.stack is not None:
            stored = [view.leaf] if view.direct and matrix.stack == 0 else []
            stack = Stack(view.shape[matrix.stack], "experts", [view.leaf], stored)
            self.walk.stacks.append(stack)
        sizes = shape_of(op.inputs[1 - matrix.side])
        use = Use(
            leaf=view.leaf,
            matrix=matrix,
            d_in=int(np.prod([view.shape[i] for i in matrix.rows])),
            d_out=int(np.prod([view.shape[i] for i in matrix.columns])),
            leading=tuple(sizes[i] for i in matrix.x_leading),
            layer=view.layer,
            stack=stack,
        )
        self.walk.uses.append(use)
        return AtSite(op, use)


def _picks(block: Block) -> bool:
    """Whether a program takes layers out of the stacks of the loop it is in."""
    inner = [b for step in block.steps for b in _blocks_of(step)]
    return any(isinstance(step, Pick) for step in block.steps) or any(map(_picks, inner))


def _blocks_of(step: Step) -> tuple[Block, ...]:
    match step:
        case Inlined(block=block):
            return (block,)
        case Switch(blocks=blocks):
            return blocks
        case _:
            return ()


def _why(op: Operation) -> str:
    """What an operation does with a parameter that can't be decomposed."""
    match op.name:
        case "conv_general_dilated":
            return "is the kernel of a convolution"
        case "concatenate":
            return "is put together with other arrays while the program runs"
        case "while":
            return "is used in a loop whose number of iterations is not known"
        case "dynamic_slice" | "gather":
            return "is taken apart by an index that is not known when the program is traced"
        case "broadcast_in_dim":
            return "is repeated before it is used"
        case _ if holds_code(op):
            return f"enters {op.name}, which is not looked into"
        case _:
            return "is changed before it is used as a matrix"
