"""What a run will take on so many devices: memory by role, operations by part, collectives, and whether it fits."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from vpd.config.run import RunConfig
from vpd.errors import ConfigError
from vpd.experiment import Experiment, lower_program, state_template
from vpd.planning.abstract import Compute, abstract_experiment, abstract_target, for_accelerators
from vpd.planning.changes import Change, Tried, smallest_change
from vpd.planning.memory import Role, Temporaries, argument_bytes, temporaries_from_shapes
from vpd.planning.operations import counted_operations, grouped
from vpd.planning.program import Collective, program_work
from vpd.training.placed import mesh_sizes, placement_from

Verdict = Literal["fits", "does not fit", "unclear"]
GB = 10**9
MOST_DEVICES = 1024
# A change is compiled too, where the run file as it is took no longer.
CHEAP_SECONDS = 120.0
# The CPU multiplies bfloat16 in float32. Moved out of the loops over layers, that would be a wide copy of all weights
# at once, which no accelerator has: the plan's program is compiled without the pass that moves it.
COMPILED: dict[str, str | bool] = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: by role, exactly what the shardings leave there.
        state: of the training state among them.
        alias: of the arguments, what the program writes its results to.
        estimate: of temporaries, by the compiler for CPU.
        shapes: of temporaries counted from shapes, by what they are, in the phase that holds most.
        phase: which that is.
    """

    arguments: dict[str, int]
    state: int
    alias: int
    estimate: int
    shapes: dict[str, int]
    phase: str

    @property
    def given(self) -> int:
        """All arguments."""
        return sum(self.arguments.values())

    @property
    def estimated_peak(self) -> int:
        """Arguments and the compiler's estimate."""
        return self.given + self.estimate

    @property
    def shapes_peak(self) -> int:
        """Arguments and the temporaries from shapes."""
        return self.given + sum(self.shapes.values())

    def verdict(self, memory: int) -> Verdict:
        """``fits`` where both peaks do, ``does not fit`` where neither does, else ``unclear``."""
        peaks = self.estimated_peak, self.shapes_peak
        if max(peaks) <= memory:
            return "fits"
        return "does not fit" if min(peaks) > memory else "unclear"


@dataclass(frozen=True)
class Compiled:
    """The training program, compiled for simulated devices.

    Attributes:
        memory: on one device.
        argument_bytes: as the compiler counts them.
        products: operations of its matrix products in a step over all devices, loops by their trip count.
        xla_operations: the compiler's own count on one device, each loop body once.
        unknown_loops: loops whose trip count is not known, the one over steps among them.
        collectives: of a step, by kind; bytes of their results on one device.
        trace_seconds: to trace and lower it.
        compile_seconds: to compile it.
    """

    memory: Memory
    argument_bytes: int
    products: int
    xla_operations: float
    unknown_loops: int
    collectives: dict[str, Collective]
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Remedy:
    """The smallest change that makes a run fit.

    Attributes:
        tried: what was looked at, from the smallest change on.
        change: the one that fits by what is counted from shapes, in words; None where none does.
        verdict: with the compiler's estimate too; None where it was not compiled.
        peaks: with it, by the compiler's estimate (0 where it was not compiled) and from shapes.
    """

    tried: tuple[Tried, ...]
    change: str | None
    verdict: Verdict | None
    peaks: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """A run on so many devices.

    Attributes:
        name: of the run file.
        sizes_from: where the sizes of its target are from.
        devices: how many.
        mesh: devices along each axis.
        placement: the preset.
        compute: dtype of the forwards.
        batch_size: the global one.
        parameters: entries of the target, of V and U, and of the CI function.
        operations: of a step over all devices, by part.
        compiled: the program.
        memory: bytes on one device that there are.
        verdict: whether it fits.
        remedy: where it is not sure to fit.
    """

    name: str
    sizes_from: str
    devices: int
    mesh: dict[str, int]
    placement: str
    compute: str
    batch_size: int
    parameters: dict[str, int]
    operations: dict[str, int]
    compiled: Compiled
    memory: int
    verdict: Verdict
    remedy: Remedy | None

    def as_record(self) -> dict[str, object]:
        """Plain values, sums included."""
        memory = self.compiled.memory
        found = asdict(self)
        total = sum(self.operations.values())
        found["operations"] = {"parts": self.operations, "groups": grouped(self.operations), "total": total}
        peaks = {"estimate": memory.estimated_peak, "shapes": memory.shapes_peak}
        found["compiled"]["memory"] |= {"arguments_total": memory.given, "shapes_total": sum(memory.shapes.values())}
        found["compiled"]["memory"]["peak"] = peaks
        return found


def simulate(devices: int) -> None:
    """Give JAX so many simulated devices on CPU; nothing of it may have been used before.

    Raises:
        ConfigError: where no plan is made for so many.
    """
    if not 1 <= devices <= MOST_DEVICES:
        raise ConfigError(f"--devices: {devices} is not between 1 and {MOST_DEVICES}")
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if not flag.startswith("--xla_force_host_platform_device_count")]
    os.environ["XLA_FLAGS"] = " ".join(kept)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def make_plan(
    config: RunConfig,
    name: str,
    devices: int,
    memory: int,
    source: Path | None = None,
    sizes: Path | None = None,
    compute: Compute = "auto",
    watch: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a run on the simulated devices of this process (:func:`simulate`); nothing of it is allocated.

    Args:
        config: the run file.
        name: of the run file.
        devices: how many, all of which the run has to use.
        memory: bytes on one device.
        source: where the run file was read from.
        sizes: a ``config.json`` for the target.
        compute: dtype of the forwards; ``auto`` is what the run takes on accelerators.
        watch: told what is being done.

    Raises:
        ConfigError: devices that don't fit the run file.
        RunError: a target whose sizes are not known.
    """
    if memory <= 0:
        raise ConfigError("--hbm: a device without memory holds nothing; give its gigabytes, as in --hbm 80")
    config = for_accelerators(config, compute)
    refuse_idle(config, devices)
    watch("building")
    target, sizes_from = abstract_target(config, source, sizes)
    experiment = abstract_experiment(config, target)
    experiment = replace(experiment, placement=placement_from(config.runtime, config.pd.batch_size))
    operations = counted_operations(experiment, state_template(experiment))
    compiled = compile_plan(experiment, devices, watch)
    verdict = compiled.memory.verdict(memory)
    state = state_template(experiment).decomposition
    trees = {"target": target, "V and U": state.components, "CI function": state.ci_fn}
    placement = experiment.placement
    return Plan(
        name=name,
        sizes_from=sizes_from,
        devices=devices,
        mesh={} if placement is None else dict(placement.mesh.shape),
        placement=config.runtime.placement,
        compute=experiment.problem.compute_dtype,
        batch_size=config.pd.batch_size,
        parameters={key: sum(leaf.size for leaf in jax.tree.leaves(tree)) for key, tree in trees.items()},
        operations=operations,
        compiled=compiled,
        memory=memory,
        verdict=verdict,
        remedy=None if verdict == "fits" else _remedy(experiment, devices, memory, compiled, watch),
    )


def refuse_idle(config: RunConfig, devices: int, option: str = "--devices") -> None:
    """Refuse devices of which the run would use a part.

    Args:
        config: the run file.
        devices: how many.
        option: that asked for so many.

    Raises:
        ConfigError: with the number that it would use.
    """
    used = math.prod(mesh_sizes(config.runtime, config.pd.batch_size, devices))
    if used == devices:
        return
    why = f"pd.batch_size {config.pd.batch_size} is not divided by more"
    if config.runtime.mesh or (config.runtime.dp or devices) < devices:
        why = "runtime.mesh has no more" if config.runtime.mesh else f"runtime.dp is {config.runtime.dp}"
    raise ConfigError(
        f"{option}: of {devices} devices the run uses {used}, since {why}; ask for {used}, or change the file"
    )


def compile_plan(experiment: Experiment, devices: int, watch: Callable[[str], None]) -> Compiled:
    """Compile the one training program of an abstract experiment and read what it takes.

    Args:
        experiment: on its placement.
        devices: how many.
        watch: told what is being done.
    """
    watch("tracing the training program")
    began = time.perf_counter()
    lowered = lower_program(experiment)
    traced = time.perf_counter()
    watch("compiling it")
    program = lowered.compile(compiler_options=COMPILED)
    done = time.perf_counter()
    watch("reading what it takes")
    found, text, costs = program.memory_analysis(), program.as_text(), program.cost_analysis()
    assert found is not None and text is not None and isinstance(costs, dict)
    work, made = program_work(text), temporaries_from_shapes(experiment)
    arguments = argument_bytes(experiment)
    return Compiled(
        memory=_memory(arguments, found.alias_size_in_bytes, found.temp_size_in_bytes, made),
        argument_bytes=found.argument_size_in_bytes,
        products=devices * work.products,
        xla_operations=costs["flops"],
        unknown_loops=work.unknown_loops,
        collectives=work.collectives,
        trace_seconds=traced - began,
        compile_seconds=done - traced,
    )


def _memory(arguments: Mapping[Role, int], alias: int, estimate: int, made: Temporaries) -> Memory:
    state = sum(size for role, size in arguments.items() if role not in ("frozen target", "batch", "counters"))
    return Memory({str(role): size for role, size in arguments.items()}, state, alias, estimate, made.parts, made.phase)


def _remedy(
    experiment: Experiment, devices: int, memory: int, compiled: Compiled, watch: Callable[[str], None]
) -> Remedy:
    tried, change = smallest_change(experiment, devices, memory, watch)
    if change is None:
        return Remedy(tuple(tried), None, None, (0, 0))
    last = tried[-1]
    peak = last.arguments + last.temporaries
    if change.devices is not None or compiled.compile_seconds > CHEAP_SECONDS:
        return Remedy(tuple(tried), last.text, None, (0, peak))
    watch(f"with {last.text}")
    again = compile_plan(_changed(experiment, change), devices, watch).memory
    return Remedy(tuple(tried), last.text, again.verdict(memory), (again.estimated_peak, peak))


def _changed(experiment: Experiment, change: Change) -> Experiment:
    """The experiment with a change, on the devices that are there."""
    config = change.applied(experiment.config)
    other = abstract_experiment(config, experiment.target)
    return replace(other, placement=placement_from(config.runtime, config.pd.batch_size))
