"""What a compiled program does, read from its text: collectives and matrix products, loops by their trip count."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_NARROW = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES = _NARROW | {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-$]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-$]+) = (.*?) ([a-z][\w\-$]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%([\w.\-$]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclass
class Collective:
    """Collectives of one kind in a step.

    Attributes:
        count: how often one is run.
        bytes: of their results on one device, together.
    """

    count: int = 0
    bytes: int = 0


@dataclass
class Work:
    """What a computation does each time it is run, all that it calls included.

    Attributes:
        collectives: by kind.
        products: operations of its matrix products on one device, multiply-add 2.
        unknown_loops: loops whose trip count the text does not say, counted as run once.
    """

    collectives: dict[str, Collective] = field(default_factory=dict)
    products: int = 0
    unknown_loops: int = 0

    def add(self, other: "Work", times: int) -> None:
        """Another computation, called so many times."""
        for kind, one in other.collectives.items():
            mine = self.collectives.setdefault(kind, Collective())
            mine.count += times * one.count
            mine.bytes += times * one.bytes
        self.products += times * other.products
        self.unknown_loops += other.unknown_loops


@dataclass(frozen=True)
class _Instruction:
    result: str
    operation: str
    rest: str


def program_work(text: str) -> Work:
    """The work of a compiled program's one step.

    A loop counts as often as the text says; the loop over steps, whose number the program is given, once. Of a
    conditional every branch counts: those that are not taken do nothing.

    Args:
        text: HLO of the compiled module, as ``jax.stages.Compiled.as_text`` gives it.
    """
    computations, entry = _computations(text)
    done: dict[str, Work] = {}

    def work(name: str) -> Work:
        if name not in done:
            done[name] = _own(computations[name])
            for called, times, known in _calls(computations[name]):
                done[name].add(work(called), times)
                done[name].unknown_loops += not known
        return done[name]

    return work(entry)


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Instructions by name of every computation, and the name of the first one."""
    found: dict[str, dict[str, _Instruction]] = {}
    entry, inside = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            inside = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif one := _INSTRUCTION.match(line):
            inside[one[1]] = _Instruction(one[2], one[3], one[4])
    return found, entry


def _calls(computation: Mapping[str, _Instruction]) -> list[tuple[str, int, bool]]:
    """Computations that one calls, how often each, and whether that is known."""
    calls: list[tuple[str, int, bool]] = []
    for one in computation.values():
        called = _CALLED.findall(one.rest)
        for branches in _BRANCHES.findall(one.rest):
            called += [name.strip().lstrip("%") for name in branches.split(",")]
        trips = _TRIPS.search(one.rest) if one.operation == "while" else None
        known = one.operation != "while" or trips is not None
        # What a reduction applies to every entry holds neither products nor collectives.
        calls += [(name, int(trips[1]) if trips else 1, known) for name in called]
    return calls


def _own(computation: Mapping[str, _Instruction]) -> Work:
    work = Work()
    for one in computation.values():
        kind = one.operation.removesuffix("-start")
        if kind in KINDS:
            entry = work.collectives.setdefault(kind, Collective())
            entry.count += 1
            entry.bytes += _result_bytes(one, kind)
        elif one.operation == "dot":
            work.products += _product(one, computation)
    return work


def _result_bytes(one: _Instruction, kind: str) -> int:
    """Of the result; a started one lists its operands before it."""
    sizes = [math.prod(_numbers(shape)) * _BYTES.get(dtype, 4) for dtype, shape in _ARRAY.findall(one.result)]
    if one.operation.endswith("-start") and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)


def _product(one: _Instruction, computation: Mapping[str, _Instruction]) -> int:
    left = one.rest.split("%", 1)[1].split(",", 1)[0].split(")", 1)[0]
    shape = _numbers(_ARRAY.findall(computation[left].result)[0][1])
    contracted = _CONTRACTED.search(one.rest)
    assert contracted is not None, one.rest
    result = _numbers(_ARRAY.findall(one.result)[0][1])
    return 2 * math.prod(result) * math.prod(shape[axis] for axis in _numbers(contracted[1]))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
