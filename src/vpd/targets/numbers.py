"""Integers of a program that do not depend on data: the layer that ``w[i]`` means."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from vpd.targets.jaxprs import Atom, Code, Literal, Operation, ScanParts, Var, bind, dtype_of, literal, shape_of

# Counters and indices; masks and the like are not needed.
_LONGEST = 4096


class Known(NamedTuple):
    """A number, or a short row of them, that is known when the program is traced.

    Attributes:
        value: the integers.
        turns: whether the first axis is over the iterations of the scan that the program is in.
    """

    value: np.ndarray
    turns: bool


Thunk = Callable[[], Known | None]


class Numbers:
    """What is known of the variables of one program; worked out where it is asked for."""

    def __init__(self, code: Code, given: dict[Var, Thunk]) -> None:
        self._given = given | {v: self._constant(value) for v, value in code.consts}
        self._made = {out: (op, i) for op in code.operations for i, out in enumerate(op.outputs)}
        self._found: dict[Var, Known | None] = {}

    @staticmethod
    def _constant(value: object) -> Thunk:
        return lambda: _small(np.asarray(value)) if hasattr(value, "dtype") and getattr(value, "ndim", 2) < 2 else None

    def of(self, atom: Atom) -> Known | None:
        """The number, where it is known."""
        if isinstance(atom, Literal):
            return _small(np.asarray(literal(atom)))
        if atom not in self._found:
            self._found[atom] = self._given[atom]() if atom in self._given else self._computed(atom)
        return self._found[atom]

    def single(self, atom: Atom) -> np.ndarray | None:
        """The number, where it is the same in every iteration."""
        known = self.of(atom)
        return None if known is None or known.turns else known.value

    def thunk(self, atom: Atom) -> Thunk:
        """The same question, asked later."""
        return lambda: self.of(atom)

    def _computed(self, variable: Var) -> Known | None:
        if variable not in self._made:
            return None
        operation, i = self._made[variable]
        if not all(_is_small(out) for out in operation.outputs):
            return None
        known = [self.of(atom) for atom in operation.inputs]
        found = [k for k in known if k is not None]
        return _evaluated(operation, found)[i] if len(found) == len(known) else None


def _is_small(variable: Var) -> bool:
    dtype = dtype_of(variable)
    integers = isinstance(dtype, np.dtype) and dtype.kind in "iub"
    return integers and len(shape_of(variable)) < 2 and sum(shape_of(variable)) <= _LONGEST


def _small(value: np.ndarray) -> Known | None:
    return Known(value, False) if value.dtype.kind in "iub" and value.ndim < 2 and value.size <= _LONGEST else None


def _evaluated(operation: Operation, known: list[Known]) -> list[Known]:
    turns = any(k.turns for k in known)

    def compute(*values: jax.Array) -> list[jax.Array]:
        return [jax.numpy.asarray(out) for out in bind(operation, values)]

    with jax.ensure_compile_time_eval():
        values = [jax.numpy.asarray(k.value) for k in known]
        out = jax.vmap(compute, in_axes=[0 if k.turns else None for k in known])(*values) if turns else compute(*values)
        return [Known(np.asarray(value), turns) for value in out]


def in_body(parts: ScanParts, outer: Numbers, inputs: tuple[Atom, ...]) -> dict[Var, Thunk]:
    """What is known inside a scan: constants, counters, and what is scanned over."""
    body, n_consts, n_carry = parts.body, parts.n_consts, parts.n_carry
    given: dict[Var, Thunk] = {}
    for i, (inner, atom) in enumerate(zip(body.inputs, inputs, strict=True)):
        if i < n_consts:
            given[inner] = lambda atom=atom: outer.of(atom) if outer.single(atom) is not None else None
        elif i < n_consts + n_carry:
            given[inner] = lambda i=i, inner=inner, atom=atom: _counter(parts, i - n_consts, inner, outer.single(atom))
        else:
            given[inner] = lambda atom=atom: _row(parts, outer.single(atom))
    return given


def _row(parts: ScanParts, scanned: np.ndarray | None) -> Known | None:
    return None if scanned is None or scanned.shape[:1] != (parts.length,) else Known(scanned, True)


def _counter(parts: ScanParts, j: int, inner: Var, start: np.ndarray | None) -> Known | None:
    """A carry that grows by a constant in every iteration."""
    out = parts.body.outputs[j]
    if start is None or start.ndim:
        return None
    made = [op for op in parts.body.operations if op.name == "add" and out in op.outputs and inner in op.inputs]
    steps = [literal(a) for op in made for a in op.inputs if isinstance(a, Literal)]
    if len(steps) != 1:
        return None
    turn = np.arange(parts.length)[:: -1 if parts.reverse else 1]
    return Known((start + np.asarray(steps[0]) * turn).astype(start.dtype), True)
