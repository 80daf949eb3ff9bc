"""Programs as JAX writes them down: all that touches their representation, which changes between versions, is here."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple  # Any: what JAX leaves untyped in its equations

import jax
import numpy as np
from jax.extend.core import Literal, Var
from jaxtyping import Array, Shaped

Atom = Var | Literal
Value = Shaped[Array | np.ndarray, "..."]

# Operations that hold a program and run it once.
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_lin"})
REMATS = frozenset({"remat", "remat2", "checkpoint"})
RULES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


class Operation(NamedTuple):
    """One equation of a program.

    Attributes:
        name: of the primitive.
        inputs: variables and literals.
        outputs: variables.
        params: what else the primitive takes.
        equation: JAX's own.
    """

    name: str
    inputs: tuple[Atom, ...]
    outputs: tuple[Var, ...]
    params: dict[str, object]
    equation: Any


@dataclass(frozen=True, eq=False)
class Code:
    """A program: equations from inputs to outputs.

    Attributes:
        inputs: its arguments.
        outputs: its results.
        operations: in program order.
        consts: arrays it closes over, by variable.
    """

    inputs: tuple[Var, ...]
    outputs: tuple[Atom, ...]
    operations: tuple[Operation, ...]
    consts: tuple[tuple[Var, Value], ...]


class ScanParts(NamedTuple):
    """What a scan is made of; its inputs are constants, carries and what is scanned over, in this order."""

    body: Code
    n_consts: int
    n_carry: int
    length: int
    reverse: bool


class Traced(NamedTuple):
    """A traced function: its program, and the text of it."""

    code: Code
    text: str


def trace_program(function: Callable[..., Value], *given: object) -> Traced:
    """The program of a function of arrays; its text has no addresses of this process.

    Args:
        function: of arrays, to one array.
        given: shapes and types of its arguments.
    """
    closed = jax.make_jaxpr(function)(*given)
    return Traced(code_of(closed), re.sub(r"0x[0-9a-f]+", "0x", str(closed)))


def code_of(found: object) -> Code:
    """A jaxpr, closed or not."""
    jaxpr: Any = getattr(found, "jaxpr", found)
    consts = zip(jaxpr.constvars, getattr(found, "consts", ()), strict=True)
    operations = [Operation(e.primitive.name, tuple(e.invars), tuple(e.outvars), dict(e.params), e) for e in jaxpr.eqns]
    return Code(tuple(jaxpr.invars), tuple(jaxpr.outvars), tuple(operations), tuple(consts))


def bind(operation: Operation, values: Sequence[Value]) -> list[Value]:
    """What an equation computes, custom derivatives included."""
    primitive = operation.equation.primitive
    found = primitive.get_bind_params(operation.params)
    subfunctions, params = found if isinstance(found, tuple) else ((), found)
    with operation.equation.ctx.manager:
        out = primitive.bind(*subfunctions, *values, **params)
    return list(out) if primitive.multiple_results else [out]


def scan_parts(operation: Operation) -> ScanParts:
    """Body and layout of a ``scan``."""
    params = operation.params
    numbers = [params["num_consts"], params["num_carry"], params["length"]]
    n_consts, n_carry, length = (n for n in numbers if isinstance(n, int))
    return ScanParts(code_of(params["jaxpr"]), n_consts, n_carry, length, bool(params["reverse"]))


def called(operation: Operation) -> Code:
    """The program that a call, a rematerialised part or a custom rule holds."""
    return code_of(operation.params.get("call_jaxpr") or operation.params.get("jaxpr") or operation.params["fun_jaxpr"])


def branches(operation: Operation) -> list[Code]:
    """The programs that a ``cond`` chooses from."""
    found = operation.params["branches"]
    assert isinstance(found, Sequence)
    return [code_of(branch) for branch in found]


def remat_settings(operation: Operation) -> dict[str, object]:
    """What ``jax.checkpoint`` was given."""
    return {name: operation.params[name] for name in ("policy", "prevent_cse") if name in operation.params}


def holds_code(operation: Operation) -> bool:
    """Whether an equation holds another program."""
    flat = [part for value in operation.params.values() for part in (value if isinstance(value, tuple) else (value,))]
    return any(hasattr(part, "eqns") or hasattr(part, "jaxpr") for part in flat)


def literal(atom: Literal) -> Value:
    """The array that a literal means."""
    return np.asarray(atom.val, dtype_of(atom))


def shape_of(atom: Atom) -> tuple[int, ...]:
    """Shape of a variable."""
    aval: Any = atom.aval
    return tuple(aval.shape)


def dtype_of(atom: Atom) -> Any:
    """Type of a variable's entries: NumPy's, or one of JAX's own, such as a random key's."""
    aval: Any = atom.aval
    return aval.dtype


def source_line(operation: Operation, enclosing: Sequence[Operation] = ()) -> str:
    """Where the user wrote an operation, as ``file.py:12``.

    Args:
        operation: the one in question.
        enclosing: the calls it lies in, the outermost first. A call to a library function is what the user wrote.
    """
    inside = len(enclosing) > 0 and operation.name not in CALLS
    found = _user_frame(operation, inside)
    if found is None and enclosing:
        return source_line(enclosing[-1], enclosing[:-1])
    return found or "an unknown line"


def _user_frame(operation: Operation, inside: bool) -> str | None:
    """The innermost frame that is no library's; where asked, only inside the jitted function."""
    traceback = getattr(getattr(operation.equation, "source_info", None), "traceback", None)
    for frame in [] if traceback is None else traceback.frames:
        path = Path(frame.file_name)
        if inside and path.name == "pjit.py":
            # A function is traced once: what comes further out may be another call of it.
            return None
        if not {"site-packages", "dist-packages"} & set(path.parts) and path.parent != Path(__file__).parent:
            return f"{path.name}:{frame.line_num}"
    return None
