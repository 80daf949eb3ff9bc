"""Any JAX function as a target: its matrices chosen by parameter path, its forward pass read from its program."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from vpd.decomposition import Activation, SiteKind
from vpd.errors import TraceError
from vpd.targets.base import Batch, Seam
from vpd.targets.divergence import kl
from vpd.targets.interpret import Runner, Stored
from vpd.targets.jaxprs import Traced, trace_program
from vpd.targets.layers import Layers
from vpd.targets.naming import member, name_stacks, name_uses, pattern_of, spelling
from vpd.targets.plan import Block, Stack, Use, View, Walk

Divergence = Callable[[Activation, Activation], Float[Array, "*leading"]]
Leaf = jax.ShapeDtypeStruct


@dataclass(frozen=True, eq=False)
class Plan:
    """What a program of one batch shape is made of."""

    block: Block
    uses: tuple[Use, ...]
    stacks: tuple[Stack, ...]
    traced: Traced
    passed_over: frozenset[str]
    vectors: frozenset[str]


@dataclass(eq=False)
class Program:
    """A function that is traced once for each shape of batch and type of parameters.

    Attributes:
        function: of the parameters' arrays, in the order of ``paths``, and a batch.
        paths: of the parameters.
        chosen: number of subcomponents by path, of those that are decomposed.
        exact: of these, the ones that were chosen by their own path.
        stack_axes: along which axis the matrices of a parameter lie, by path.
        aliases: names of sites.
        inline_rules: whether sites may lie inside custom derivatives.
        first: which axis of the positions is the batch, by site.
        plans: by shapes and types.
    """

    function: Callable[[Sequence[Array], Batch], PyTree]
    paths: tuple[str, ...]
    chosen: Mapping[str, int]
    exact: frozenset[str]
    stack_axes: Mapping[str, int]
    aliases: Mapping[str, str]
    inline_rules: bool
    first: dict[str, int] = field(default_factory=dict)
    plans: dict[object, Plan] = field(default_factory=dict)

    def plan(self, leaves: Sequence[Leaf], batch: Leaf) -> Plan:
        """The plan for these shapes and types, made where it is new."""
        key = tuple((leaf.shape, str(leaf.dtype)) for leaf in (*leaves, batch))
        if key not in self.plans:
            self.plans[key] = self._planned(leaves, batch)
        return self.plans[key]

    def _planned(self, leaves: Sequence[Leaf], batch: Leaf) -> Plan:
        traced = trace_program(self.function, tuple(leaves), batch)
        if len(traced.code.outputs) != 1:
            raise TraceError(
                f"the function returns {len(traced.code.outputs)} arrays; return one, of which the divergence is taken"
            )
        views = [
            View(path, leaf.shape, path in self.chosen, self.stack_axes.get(path))
            for path, leaf in zip(self.paths, leaves, strict=True)
        ]
        walk = Walk(self.exact, self.inline_rules)
        n = len(leaves)
        block = walk.block(traced.code, [*views, None], [False] * n + [True], [None] * (n + 1))
        for view in block.views:
            if view is not None and view.chosen:
                raise TraceError(f"{view.leaf} is returned as it is, and used as no matrix; choose other parameters")
        name_stacks(walk.stacks, self.aliases)
        name_uses(walk.uses, self.aliases)
        for use in walk.uses:
            use.first = self.first.get(pattern_of(use), 0)
        found = tuple(walk.uses), tuple(walk.stacks)
        return Plan(block, *found, traced, frozenset(walk.passed_over), frozenset(walk.vectors))


class TracedTarget(eqx.Module):
    """A network that was traced.

    Attributes:
        params: parameters by path, without those that ``stacks`` hold.
        stacks: parameters that the program scans over as they are stored, by the prefix of their layers.
        program: the function and its plans; static.
        measure: divergence of outputs.
        batch: shape and type of the example's batch.
        subcomponents: C of each site; of a stack with ``*`` for the number of the layer.
        sizes: ``(d_in, d_out, kind)`` of each matrix in numeric layer order.
        name: of the network, for records.
    """

    params: dict[str, Array]
    stacks: dict[str, Layers]
    program: Program = eqx.field(static=True)
    measure: Divergence = eqx.field(static=True)
    batch: Leaf = eqx.field(static=True)
    subcomponents: tuple[tuple[str, int], ...] = eqx.field(static=True)
    sizes: tuple[tuple[str, tuple[int, int, SiteKind]], ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def forward(self, batch: Batch, seam: Seam) -> Activation:
        """The function's output, its sites through the seam."""
        leaves = self._leaves()
        plan = self._plan(batch)
        given = [leaves[path] for path in self.program.paths]
        return jnp.asarray(Runner(self.stacks).block(plan.block, seam, [*given, batch])[0])

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """How far the masked output is from the clean one, per position."""
        return self.measure(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """Every chosen matrix, in numeric layer order."""
        return dict(self.sizes)

    def leading(self, batch: Batch | Leaf) -> tuple[int, ...]:
        """Shape of the positions of a batch, the batch axis first.

        Raises:
            TraceError: sites whose positions differ, which can't be trained together.
        """
        shapes = {pattern_of(use): _positions(use) for use in self._plan(batch).uses}
        (name, shape), *others = shapes.items()
        for other, differing in others:
            if differing != shape:
                raise TraceError(
                    f"site {name!r} has positions {list(shape)} and {other!r} has {list(differing)}, and masks are "
                    "drawn for one shape; choose the sites of one of them"
                )
        return shape

    def fingerprint(self) -> dict[str, str]:
        """Hashes of parameter paths and shapes, of their values, of the sites, and of the program's text."""
        leaves = {path: _whole(value) for path, value in self._leaves().items()}
        shapes = [[path, list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.items()]
        weights = hashlib.sha256()
        for leaf in leaves.values():
            weights.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        traced = self._plan(self.batch).traced
        text = hashlib.sha256(traced.text.encode())
        for _, const in traced.code.consts:
            text.update(np.asarray(const).tobytes() if _is_plain(const) else b"")
        return {
            "leaves": _digest(json.dumps(shapes).encode()),
            "weights": weights.hexdigest()[:24],
            "sites": _digest(json.dumps([self.sizes, self.subcomponents]).encode()),
            "program": text.hexdigest()[:24],
            "jax": jax.__version__,
        }

    def _leaves(self) -> dict[str, Array | Stored]:
        """The parameters by path, in order."""
        stored = {
            path: Stored(tuple(run[path] for run in layers.runs))
            for layers in self.stacks.values()
            for path in layers.runs[0]
        }
        return {path: stored[path] if path in stored else self.params[path] for path in self.program.paths}

    def _plan(self, batch: Batch | Leaf) -> Plan:
        leaves: list[Leaf] = []
        for value in self._leaves().values():
            runs = value.runs if isinstance(value, Stored) else (value,)
            rows = (sum(run.shape[0] for run in runs),) if isinstance(value, Stored) else value.shape[:1]
            leaves.append(Leaf((*rows, *runs[0].shape[1:]), runs[0].dtype))
        plan = self.program.plan(leaves, Leaf(batch.shape, batch.dtype))
        if _sizes(plan.uses) != self.sizes:
            raise TraceError(
                f"a batch of shape {list(batch.shape)} makes another program than one of {list(self.batch.shape)}: it "
                "has other sites; trace the function with an example like the batches it is to get"
            )
        return plan


def trace(
    forward: Callable[..., PyTree],
    params: PyTree,
    example: PyTree,
    sites: Mapping[str, int],
    divergence: Divergence = kl,
    *,
    name: str | None = None,
    stack_axes: Mapping[str, int] | None = None,
    aliases: Mapping[str, str] | None = None,
    inline_custom_rules: bool = False,
) -> TracedTarget:
    """Make a target of any JAX function (docs/trace.md).

    Args:
        forward: ``forward(params, batch)`` to one array.
        params: of the function, any pytree; what is no array in it stays as it is.
        example: a batch, for its shape and type; its first axis is the batch.
        sites: number of subcomponents by glob over parameter paths, whose parts are joined by ``/``.
        divergence: of the clean and the masked output, per position: ``vpd.kl``, ``vpd.squared_error``, or your own.
        name: of the network; by default the function's.
        stack_axes: for parameters that hold several matrices (experts), by glob: along which axis they lie.
        aliases: other names for sites, by name.
        inline_custom_rules: let sites lie inside functions with a derivative rule of their own, which is then lost.

    Raises:
        TraceError: a glob that matches nothing, or a parameter that is used otherwise than as a matrix; the message
            names parameter, operation and source line.
    """
    arrays, static = eqx.partition(params, _is_array)
    flat, structure = jax.tree_util.tree_flatten_with_path(arrays)
    leaves = {path_of(keys): jnp.asarray(leaf) for keys, leaf in flat}

    def function(values: Sequence[Array], batch: Batch) -> PyTree:
        return forward(eqx.combine(jax.tree.unflatten(structure, values), static), batch)

    chosen, exact = _chosen(sites, leaves)
    program = Program(
        function=function,
        paths=tuple(leaves),
        chosen=chosen,
        exact=exact,
        stack_axes=_axes(stack_axes or {}, leaves),
        aliases=dict(aliases or {}),
        inline_rules=inline_custom_rules,
    )
    if not hasattr(example, "shape") or not hasattr(example, "dtype"):
        raise TraceError(f"example is a {type(example).__name__}; give one array, and take it apart in the function")
    batch = Leaf(example.shape, jax.dtypes.canonicalize_dtype(example.dtype))
    shapes = [Leaf(leaf.shape, leaf.dtype) for leaf in leaves.values()]
    plan = program.plan(shapes, batch)
    _refuse_unused(program, plan, leaves)
    _find_batch_axes(program, plan, shapes, batch)
    return TracedTarget(
        params={path: leaf for path, leaf in leaves.items() if not any(path in s.stored for s in plan.stacks)},
        stacks=_stored_layers(plan, leaves),
        program=program,
        measure=divergence,
        batch=batch,
        subcomponents=tuple((pattern_of(use), chosen[use.leaf]) for use in plan.uses),
        sizes=_sizes(plan.uses),
        name=name or getattr(forward, "__name__", type(forward).__name__),
    )


def path_of(keys: Sequence[object]) -> str:
    """The path of a parameter: keys, attributes and indices joined by ``/``; the ``value`` of an NNX variable is left
    out."""
    parts: list[str] = []
    for key in keys:
        found = next((getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)), key)
        parts.append(str(found))
    is_variable = len(parts) > 1 and parts[-1] == "value" and hasattr(keys[-1], "name")
    return "/".join(parts[:-1] if is_variable else parts)


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_plain(value: object) -> bool:
    return isinstance(getattr(value, "dtype", None), np.dtype)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _whole(value: Array | Stored) -> Array:
    return value.whole() if isinstance(value, Stored) else value


def _chosen(sites: Mapping[str, int], leaves: Mapping[str, Array]) -> tuple[dict[str, int], frozenset[str]]:
    """C by path of every matrix that a glob names, and the paths that were named outright."""
    chosen: dict[str, int] = {}
    owner: dict[str, str] = {}
    for glob, C in sites.items():
        found = [path for path in leaves if path == glob or fnmatchcase(path, glob)]
        if not found:
            raise TraceError(f"sites: {glob!r} matches no parameter; {spelling(glob, list(leaves))}")
        if C < 1:
            raise TraceError(f"sites: {glob!r} has C = {C}; give a number of at least 1")
        matrices = [p for p in found if leaves[p].ndim > 1 and jnp.issubdtype(leaves[p].dtype, jnp.floating)]
        if not matrices:
            raise TraceError(f"sites: {glob!r} matches no matrix: {found[0]} is {list(leaves[found[0]].shape)}")
        for path in matrices:
            if path in owner:
                raise TraceError(f"sites: {glob!r} matches {path}, which {owner[path]!r} matches already")
            owner[path] = glob
            chosen[path] = C
    if not chosen:
        raise TraceError("sites: nothing is chosen; give at least one glob over parameter paths and its C")
    return chosen, frozenset(path for path in chosen if path in sites)


def _axes(stack_axes: Mapping[str, int], leaves: Mapping[str, Array]) -> dict[str, int]:
    axes: dict[str, int] = {}
    for glob, axis in stack_axes.items():
        found = [path for path in leaves if path == glob or fnmatchcase(path, glob)]
        if not found:
            raise TraceError(f"stack_axes: {glob!r} matches no parameter; {spelling(glob, list(leaves))}")
        for path in found:
            if not -leaves[path].ndim <= axis < leaves[path].ndim:
                raise TraceError(f"stack_axes: {path} {list(leaves[path].shape)} has no axis {axis}")
            axes[path] = axis % leaves[path].ndim
    return axes


def _refuse_unused(program: Program, plan: Plan, leaves: Mapping[str, Array]) -> None:
    """Each chosen parameter is a site, or it was said why it is none."""
    excused = {use.leaf for use in plan.uses} | plan.passed_over | plan.vectors
    for path in program.chosen:
        if path not in excused:
            closed_over = any(
                _is_plain(const) and const.shape == leaves[path].shape and np.array_equal(const, leaves[path])
                for const in _consts(plan.block)
            )
            why = (
                "is closed over by the function, which has its own copy; take it from the params that are passed"
                if closed_over
                else "is never used by the function; choose parameters that it uses"
            )
            raise TraceError(f"{path} {why}")
    if not plan.uses:
        raise TraceError("none of the chosen parameters is used as a matrix; choose others")


def _consts(block: Block) -> list[Array]:
    """Arrays that a program closes over, in calls as well."""
    found = [jnp.asarray(v) for _, v in block.code.consts if _is_plain(v)]
    literals = [a.val for op in block.code.operations for a in op.inputs if isinstance(a, Literal)]
    return found + [jnp.asarray(v) for v in literals if getattr(v, "ndim", 0) > 1]


def _find_batch_axes(program: Program, plan: Plan, leaves: Sequence[Leaf], batch: Leaf) -> None:
    """Learn from one more example a batch which axis of each site's positions is the batch; others stay in order."""
    if not batch.shape:
        return
    more = Leaf((batch.shape[0] + 1, *batch.shape[1:]), batch.dtype)
    try:
        with warnings.catch_warnings():
            # What it warns of was said of the first example.
            warnings.simplefilter("ignore")
            other = program.plan(leaves, more)
    except (TypeError, ValueError, AssertionError):
        # A function for this batch size alone: its axes are taken as they come.
        return
    program.plans.clear()
    if len(other.uses) != len(plan.uses):
        return
    for use, grown in zip(plan.uses, other.uses, strict=True):
        moved = [i for i, (a, b) in enumerate(zip(use.leading, grown.leading, strict=True)) if a != b]
        if len(moved) == 1:
            program.first[pattern_of(use)] = moved[0]


def _positions(use: Use) -> tuple[int, ...]:
    rest = tuple(n for i, n in enumerate(use.leading) if i != use.first)
    return (use.leading[use.first], *rest) if use.leading else ()


def _stored_layers(plan: Plan, leaves: Mapping[str, Array]) -> dict[str, Layers]:
    """The layers that are scanned over as they are stored; where there are none, their numbers stand for them."""
    held: dict[str, dict[str, Array]] = {}
    for stack in plan.stacks:
        held.setdefault(stack.prefix, {}).update({path: leaves[path] for path in stack.stored})
    depths = {stack.prefix: stack.depth for stack in plan.stacks}
    return {
        prefix: Layers((own or {"": jnp.arange(depths[prefix], dtype=jnp.int32)},), prefix)
        for prefix, own in held.items()
    }


def _sizes(uses: Sequence[Use]) -> tuple[tuple[str, tuple[int, int, SiteKind]], ...]:
    """Every matrix in program order, those of a stack layer by layer."""
    sizes: dict[str, tuple[int, int, SiteKind]] = {}
    for use in uses:
        if use.stack is None:
            sizes[use.name] = (use.d_in, use.d_out, use.matrix.kind)
            continue
        same = [u for u in uses if u.stack is not None and u.stack.prefix == use.stack.prefix]
        for i in range(use.stack.depth):
            sizes |= {member(u, i): (u.d_in, u.d_out, u.matrix.kind) for u in same}
    return tuple(sizes.items())
