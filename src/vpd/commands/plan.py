"""``vpd plan``: what a run would take on devices that need not be there, as a table or as one JSON object."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vpd.commands.tables import results_console
from vpd.errors import ConfigError
from vpd.face import read_with
from vpd.planning.abstract import Compute
from vpd.planning.operations import grouped
from vpd.planning.plan import GB, Plan, Remedy, make_plan, simulate
from vpd.progress import say

COLOURS = {"fits": "green", "does not fit": "red", "unclear": "yellow"}


def plan_command(
    source: Path, devices: int, hbm: float, target_config: Path | None, compute: str, as_json: bool, quiet: bool
) -> None:
    """Plan a run file and print what it takes; progress goes to standard error.

    Raises:
        ConfigError: a run file that can't be used, or devices that don't fit it.
        RunError: a target whose sizes are not known.
    """
    wanted = next((kind for kind in get_args(Compute) if kind == compute), None)
    if wanted is None:
        raise ConfigError(f"--compute: {compute!r} is none of {', '.join(get_args(Compute))}")
    if not 0 < hbm < math.inf:
        raise ConfigError(f"--hbm: {hbm:g} GB hold nothing; give the memory of one device, as in --hbm 80")
    read = read_with(source)
    simulate(devices)
    watch = (lambda _: None) if quiet else _clock()
    name = read.name or str(source)
    plan = make_plan(read.config, name, devices, round(hbm * GB), source, target_config, wanted, watch)
    if as_json:
        typer.echo(json.dumps(plan.as_record()))
    else:
        print_plan(plan)


def _clock() -> Callable[[str], None]:
    began = time.monotonic()
    return lambda doing: say(f"{time.monotonic() - began:6.1f} s  {doing}")


def print_plan(plan: Plan) -> None:
    """The tables and the verdict."""
    console = results_console()
    for line in _heading(plan):
        console.print(escape(line))
    console.print(_memory_table(plan))
    console.print(_shapes_line(plan))
    console.print(_operations_table(plan))
    console.print(_products_line(plan))
    if plan.compiled.collectives:
        console.print(_collectives_table(plan))
    compiled = plan.compiled
    console.print(f"traced in {compiled.trace_seconds:.1f} s, compiled in {compiled.compile_seconds:.1f} s")
    _print_verdict(console, plan)


def _heading(plan: Plan) -> list[str]:
    devices = f"{plan.devices} device{'s' * (plan.devices > 1)}"
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    each = plan.batch_size // max(1, plan.mesh.get("data", 1) * plan.mesh.get("fsdp", 1))
    sizes = ", ".join(f"{name} {_short(size)}" for name, size in plan.parameters.items())
    return [
        f"{plan.name} on {devices}" + (f" (mesh {mesh}; placement {plan.placement})" if mesh else ""),
        f"parameters: {sizes}; sizes of the target from {plan.sizes_from}",
        f"batch {plan.batch_size}, {each} on a device; forwards in {plan.compute}, as on accelerators",
    ]


def _memory_table(plan: Plan) -> Table:
    memory = plan.compiled.memory
    table = Table(title="bytes on one device", title_justify="left")
    table.add_column("what")
    table.add_column("GB", justify="right")
    table.add_column("how it is known")
    for role, size in memory.arguments.items():
        if size:
            table.add_row(role, _gb(size), "exact")
    table.add_row("arguments", _gb(memory.given), "exact", style="bold")
    table.add_row("  of these the training state", _gb(memory.state), "exact")
    table.add_row("  of these written in place", _gb(memory.alias), "the compiler")
    table.add_section()
    table.add_row("temporaries", _gb(memory.estimate), "the CPU compiler's estimate")
    table.add_row("temporaries, from shapes", _gb(sum(memory.shapes.values())), "counted: the largest phase")
    table.add_section()
    table.add_row("peak", _gb(memory.estimated_peak), "arguments and the estimate", style="bold")
    table.add_row("peak, from shapes", _gb(memory.shapes_peak), "arguments and these", style="bold")
    table.add_row("memory of a device", _gb(plan.memory), "--hbm")
    return table


def _shapes_line(plan: Plan) -> str:
    memory = plan.compiled.memory
    parts = sorted(memory.shapes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {_gb(size)}" for name, size in parts if size)
    return escape(f"from shapes, most is held in: {memory.phase} ({shown})")


def _operations_table(plan: Plan) -> Table:
    parts, total = grouped(plan.operations), sum(plan.operations.values())
    table = Table(title="operations of a step on all devices", title_justify="left")
    table.add_column("part")
    table.add_column("TFLOP", justify="right")
    table.add_column("share", justify="right")
    for name, count in parts.items():
        table.add_row(name, _tera(count), f"{count / total:.1%}")
    table.add_section()
    table.add_row("counted from shapes", _tera(total), "100.0%", style="bold")
    table.add_row("products in the program", _tera(plan.compiled.products), f"{plan.compiled.products / total:.1%}")
    return table


def _products_line(plan: Plan) -> str:
    once = plan.compiled.xla_operations / 1e12
    return (
        "products in the program: loops by their trip count, with what is recomputed and what every device computes "
        "for itself, without products over an axis of one entry; XLA's own count, each loop body once, is "
        f"{once:.4g} TFLOP a device"
    )


def _collectives_table(plan: Plan) -> Table:
    table = Table(title="collectives of a step", title_justify="left")
    table.add_column("kind")
    table.add_column("count", justify="right")
    table.add_column("GB of results on a device", justify="right")
    for kind, one in plan.compiled.collectives.items():
        table.add_row(kind, f"{one.count:,}", _gb(one.bytes))
    return table


def _print_verdict(console: Console, plan: Plan) -> None:
    memory, colour = plan.compiled.memory, COLOURS[plan.verdict]
    shown = f"{_gb(memory.estimated_peak)} GB by the estimate, {_gb(memory.shapes_peak)} GB from shapes"
    console.print(f"[bold {colour}]{plan.verdict}[/]: {shown}, of {_gb(plan.memory)} GB")
    if plan.remedy is not None:
        console.print(_remedy_text(plan.remedy))


def _remedy_text(remedy: Remedy) -> str:
    tried = "; ".join(f"{one.text} ({_gb(one.arguments + one.temporaries)} GB from shapes)" for one in remedy.tried)
    if remedy.change is None:
        return escape(f"none of these makes it fit: {tried}" if tried else "there is nothing to change that would help")
    known = "not compiled" if remedy.verdict is None else f"{_gb(remedy.peaks[0])} GB by the estimate"
    last = f"[bold]{escape(remedy.change)}[/] would make it fit: {known}, {_gb(remedy.peaks[1])} GB from shapes"
    before = "; ".join(
        f"{one.text} ({_gb(one.arguments + one.temporaries)} GB from shapes)" for one in remedy.tried[:-1]
    )
    return last + (escape(f"\ntried before it: {before}") if before else "")


def _gb(size: float) -> str:
    """In 10⁹ bytes, three digits."""
    value = size / GB
    return (
        f"{value:,.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.01
        else f"{size / 1e6:.2g} MB"
        if size >= 1e4
        else f"{size:.0f} B"
    )


def _tera(count: float) -> str:
    return f"{count / 1e12:,.4g}"


def _short(entries: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if entries >= size:
            return f"{entries / size:.3g} {unit}"
    return str(entries)
