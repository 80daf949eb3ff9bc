"""Runs a planned program: every operation as it was, those that are sites through the seam."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from vpd.decomposition import dense
from vpd.targets.base import Seam
from vpd.targets.jaxprs import Atom, Literal, Operation, Value, Var, bind, dtype_of, literal, remat_settings
from vpd.targets.layers import Layers
from vpd.targets.plan import AtSite, Block, Inlined, Loop, Pick, Plain, Switch, Use
from vpd.targets.views import rows_of

Values = list[Value]


@dataclass(frozen=True)
class Stored:
    """A parameter whose layers a stack holds, in runs; put together where more than its layers is asked for."""

    runs: tuple[Array, ...]

    def whole(self) -> Array:
        """The parameter itself."""
        return self.runs[0] if len(self.runs) == 1 else jnp.concatenate(self.runs)


@dataclass(frozen=True)
class Runner:
    """One run of a program.

    Attributes:
        stacks: the stored layers, by prefix.
    """

    stacks: Mapping[str, Layers]

    def block(self, block: Block, seam: Seam, given: Sequence[Value | Stored], picked: Sequence[Value] = ()) -> Values:
        """The results of a program.

        Args:
            block: its steps.
            seam: every site goes through it.
            given: its inputs.
            picked: the layers that the body of a loop takes out of stacks.
        """
        env: dict[Var, Value | Stored] = dict(zip(block.code.inputs, given, strict=True)) | dict(block.code.consts)

        def raw(atom: Atom) -> Value | Stored:
            return literal(atom) if isinstance(atom, Literal) else env[atom]

        def read(atom: Atom) -> Value:
            value = raw(atom)
            return value.whole() if isinstance(value, Stored) else value

        out: Sequence[Value | Stored]
        for step in block.steps:
            op = step.operation
            match step:
                case Plain():
                    out = bind(op, [read(atom) for atom in op.inputs])
                case AtSite(use=use):
                    out = [self._site(use, op, seam, [raw(atom) for atom in op.inputs])]
                case Inlined(block=inner, again=False):
                    out = self.block(inner, seam, [raw(atom) for atom in op.inputs], picked)
                case Inlined(block=inner):
                    out = self._again(inner, op, seam, [read(atom) for atom in op.inputs], picked)
                case Switch(blocks=blocks):
                    out = self._switch(blocks, seam, [read(atom) for atom in op.inputs], picked)
                case Loop():
                    out = self._loop(step, seam, [raw(atom) for atom in op.inputs])
                case Pick(slot=slot):
                    out = [picked[slot][None]]
            env |= dict(zip(op.outputs, out, strict=True))
        return [read(atom) for atom in block.code.outputs]

    def _again(self, inner: Block, op: Operation, seam: Seam, given: Values, picked: Sequence[Value]) -> Values:
        def body(seam: Seam, given: PyTree) -> Values:
            return self.block(inner, seam, *given)

        arrays = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in given]
        return seam.recomputed(body, (arrays, list(picked)), **remat_settings(op))

    def _switch(self, blocks: Sequence[Block], seam: Seam, given: Values, picked: Sequence[Value]) -> Values:
        index = jnp.clip(jnp.asarray(given[0], jnp.int32), 0, len(blocks) - 1)
        outs = [self.block(block, seam, given[1:], picked) for block in blocks]
        taken: Values = []
        for values in zip(*outs, strict=True):
            value = jnp.asarray(values[0])
            for i, other in enumerate(values[1:], start=1):
                value = jnp.where(index == i, other, value)
            taken.append(value)
        return taken

    def _loop(self, step: Loop, seam: Seam, given: list[Value | Stored]) -> list[Value | Stored]:
        parts, block = step.parts, step.block
        consts, end = list(given[: parts.n_consts]), parts.n_consts + parts.n_carry
        layered = [*step.picked, *range(end, len(given))]
        layers = self._layers(step, [(i, given[i]) for i in layered])
        starts = zip(given[parts.n_consts : end], block.code.inputs[parts.n_consts : end], strict=True)
        carried = [_array(value, dtype_of(v)) for value, v in starts]

        def body(seam: Seam, carry: Values, layer: Sequence[Value]) -> tuple[Values, Values]:
            n = len(step.picked)
            out = self.block(block, seam, [*consts, *carry, *layer[n:]], layer[:n])
            return out[: parts.n_carry], [y for k, y in enumerate(out[parts.n_carry :]) if k not in step.returned]

        carry, made = seam.scan(layers, body, carried, parts.reverse)
        made = iter(made)
        n_ys = len(block.code.outputs) - parts.n_carry
        return [*carry, *(given[step.returned[k]] if k in step.returned else next(made) for k in range(n_ys))]

    def _layers(self, step: Loop, layered: Sequence[tuple[int, Value | Stored]]) -> Layers:
        """What is scanned over, in the runs of the stored layers; the rest rides along."""
        stored = self.stacks[step.stack.prefix]
        runs: list[list[Value]] = []
        for run in stored:
            part = slice(run.first, run.first + run.depth)
            runs.append(
                [run.stack[step.stored[i]] if i in step.stored else _whole(value)[part] for i, value in layered]
            )
        return Layers(tuple(runs), step.stack.prefix)

    def _site(self, use: Use, op: Operation, seam: Seam, given: Sequence[Value | Stored]) -> Value:
        x = _whole(given[1 - use.matrix.side])
        weight = given[use.matrix.side]
        if use.matrix.kind == "embedding":
            return _lookup(use, op, seam, x, _whole(weight))
        out = dtype_of(op.outputs[0])
        # A product of narrow numbers that is summed in wider ones is one of wide numbers.
        x = x.astype(out) if out.itemsize > x.dtype.itemsize else x
        with _precision(op):
            several = use.matrix.stack is not None
            y = self._experts(use, seam, x, weight) if several else _product(use, seam, x, _whole(weight))
        return y.astype(out)

    def _experts(self, use: Use, seam: Seam, x: Value, weight: Value | Stored) -> Value:
        """A product with one matrix for each expert: a stack of sites, one after the other."""
        matrix, stack = use.matrix, use.stack
        assert matrix.stack is not None and stack is not None
        rows, columns = (tuple(a - (a > matrix.stack) for a in axes) for axes in (matrix.rows, matrix.columns))
        own = x if matrix.x_stack is None else jnp.moveaxis(x, matrix.x_stack, 0)
        lower = (lambda a: a) if matrix.x_stack is None else (lambda a: a - (a > matrix.x_stack))
        alone = matrix._replace(
            rows=rows,
            columns=columns,
            stack=None,
            side=1,
            x_contracted=tuple(lower(a) for a in matrix.x_contracted),
            x_leading=tuple(lower(a) for a in matrix.x_leading),
        )
        single = Use(use.leaf, alone, use.d_in, use.d_out, use.leading, name=use.name, first=use.first)

        def body(seam: Seam, carry: tuple[()], layer: Sequence[Value]) -> tuple[tuple[()], Value]:
            return carry, _product(single, seam, own if matrix.x_stack is None else layer[1], layer[0])

        runs: list[list[Value]] = []
        for run in self.stacks[stack.prefix]:
            part = slice(run.first, run.first + run.depth)
            held = (
                run.stack[use.leaf] if use.leaf in stack.stored else jnp.moveaxis(_whole(weight), matrix.stack, 0)[part]
            )
            runs.append([held] if matrix.x_stack is None else [held, own[part]])
        _, y = seam.scan(Layers(tuple(runs), stack.prefix), body, ())
        # y is [experts, *leading, *columns].
        n = len(matrix.x_leading)
        if matrix.x_stack is not None:
            return y if matrix.side == 1 else jnp.moveaxis(y, range(1, n + 1), range(-n, 0))
        place = sum(a < matrix.stack for a in matrix.columns)
        if matrix.side == 1:
            return jnp.moveaxis(y, 0, n + place)
        return jnp.moveaxis(jnp.moveaxis(y, range(1, n + 1), range(-n, 0)), 0, place)


def _whole(value: Value | Stored) -> Value:
    return value.whole() if isinstance(value, Stored) else value


def _array(value: Value | Stored, dtype: np.dtype) -> Value:
    value = _whole(value)
    return jnp.asarray(value, dtype) if isinstance(value, np.ndarray) else value


def _product(use: Use, seam: Seam, x: Value, weight: Value) -> Value:
    """``x @ W`` at a site, in the axes of the program."""
    matrix = use.matrix
    leading = [matrix.x_leading[i] for i in _positions_first(use)]
    x = jnp.transpose(x, (*leading, *matrix.x_contracted))
    positions = x.shape[: len(leading)]
    columns = [weight.shape[a] for a in matrix.columns]
    square = jnp.transpose(weight, (*matrix.rows, *matrix.columns)).reshape(use.d_in, use.d_out)
    y = dense(seam(use.name, x.reshape(*positions, use.d_in), square.astype(x.dtype)))
    y = _positions_back(use, y.reshape(*positions, *columns))
    n = len(leading)
    return y if matrix.side == 1 else jnp.moveaxis(y, range(n), range(-n, 0))


def _lookup(use: Use, op: Operation, seam: Seam, indices: Value, weight: Value) -> Value:
    """The rows of a weight at a site, in the axes of the program."""
    rows = rows_of(op)
    assert rows is not None
    axis, columns = rows.axis, use.matrix.columns
    index, n = indices[..., rows.place], weight.shape[axis]
    square = jnp.transpose(weight, (axis, *columns)).reshape(use.d_in, use.d_out)
    order = _positions_first(use)
    inside = jnp.clip(index, 0, n - 1)
    y = dense(seam(use.name, jnp.transpose(inside, order), square, kind="embedding"))
    y = _positions_back(use, y.reshape(*(index.shape[i] for i in order), *(weight.shape[a] for a in columns)))
    if rows.kept:
        y = jnp.expand_dims(y, index.ndim + axis)
    if "FILL" in str(op.params["mode"]):
        fill = op.params["fill_value"]
        found = jnp.expand_dims((index >= 0) & (index < n), range(index.ndim, y.ndim))
        y = jnp.where(found, y, jnp.asarray(jnp.nan if fill is None else fill, y.dtype))
    return jnp.moveaxis(y, range(index.ndim, y.ndim), rows.places).astype(dtype_of(op.outputs[0]))


def _positions_first(use: Use) -> list[int]:
    """Which axes of the positions come first at the seam: the batch, then the others in program order."""
    axes = list(range(len(use.matrix.x_leading)))
    return [use.first, *(a for a in axes if a != use.first)] if axes else []


def _positions_back(use: Use, y: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    return jnp.moveaxis(y, 0, use.first) if use.first else y


def _precision(op: Operation) -> AbstractContextManager[object]:
    """The precision that a product asks for by itself."""
    asked = op.params.get("precision")
    first = asked[0] if isinstance(asked, tuple) else asked
    return nullcontext() if first is None else jax.default_matmul_precision(str(first).rpartition(".")[2].lower())
