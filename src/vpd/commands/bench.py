"""``vpd bench``: what a training step of a fixed workload costs on one core, and what its program looks like."""

import json
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import typer
from jaxtyping import Array, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vpd.config import read_run_file
from vpd.config.run import RunConfig
from vpd.config.targets import LMTarget, TokenData, ToyTarget
from vpd.errors import VpdError
from vpd.experiment import Experiment, build, first_state, leading_of, lower_program, state_template
from vpd.machine import PACKAGES, return_freed_memory
from vpd.planning.operations import counted_operations
from vpd.progress import console
from vpd.randomness import Seed, stream
from vpd.targets.build import fresh_target
from vpd.targets.simple_mlp_lm import init_simple_mlp_lm
from vpd.training.state import TrainState, state_bytes
from vpd.training.step import Logs, run_steps

WORKLOADS = ("T", "R", "W")
# A round is fast where bare products reach so many GFLOP/s; so many fast rounds are enough for a figure.
FAST, ENOUGH = 110.0, 5
# Smaller products say more about dispatch than about the processor.
LEAST_PRODUCT, REPEATS = 10**8, 3
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_FLAG = "jax_enable_compilation_cache"


@dataclass(frozen=True)
class Round:
    """Seconds a step in one dispatch, and the rate of bare matrix products beside it."""

    cpu_s_per_step: float
    wall_s_per_step: float
    matmul_gflop_per_s: float | None = None


@dataclass(frozen=True)
class Result:
    """What a benchmark measured; `docs/benchmark.md` says what each figure means."""

    workload: str
    cpu_s_per_step: float
    wall_s_per_step: float
    cpu_s_per_step_quartiles: tuple[float, float]
    steps_per_round: int
    counted_gflop: float
    roofline_fraction: float | None
    peak_rss_mb: float
    compiles: int
    compile_s: float
    program_lines: int
    state_bytes: int
    alias_bytes: int
    temp_bytes: int
    largest_constant_bytes: int
    rounds: tuple[Round, ...]
    machine: dict[str, object]
    versions: dict[str, str]


def bench_command(workload: str, rounds: int, steps: int, as_json: bool) -> None:
    """Measure a workload and print a table, or one JSON object.

    Args:
        workload: its name.
        rounds: measured dispatches.
        steps: training steps in each.
        as_json: print JSON.

    Raises:
        VpdError: a workload that does not exist.
    """
    config = workload_config(workload)
    with one_core() as machine:
        result = measure(workload, config, rounds, steps, machine)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        print_result(result)


def workload_config(workload: str) -> RunConfig:
    """The run file of a workload.

    Raises:
        VpdError: an unknown name.
    """
    if workload not in WORKLOADS:
        raise VpdError(f"workload {workload} is unknown; this version measures {' and '.join(WORKLOADS)}")
    with resources.as_file(resources.files("vpd") / "recipes" / f"bench-{workload}.yaml") as path:
        return read_run_file(path).config


@contextmanager
def one_core() -> Generator[dict[str, object]]:
    """Within it, threads that are started run on one core, XLA's too if its backend was not in use before.

    Yields the machine as it was found.
    """
    machine: dict[str, object] = {"cpu": _cpu_model(), "cores_allowed": os.cpu_count(), "load": list(os.getloadavg())}
    if sys.platform != "linux":
        yield machine
        return
    allowed = os.sched_getaffinity(0)
    machine["cores_allowed"] = len(allowed)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield machine
    finally:
        os.sched_setaffinity(0, allowed)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def counted_compiles(name: str) -> Generator[list[float]]:
    """Seconds of every backend compilation, within it, of a function with this name."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT and name in str(kwargs.get("fun_name")):
            seconds.append(duration_secs)

    # A program that comes out of a cache is not compiled.
    cache: bool = getattr(jax.config, CACHE_FLAG)
    jax.config.update(CACHE_FLAG, False)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        jax.config.update(CACHE_FLAG, cache)


def measure(workload: str, config: RunConfig, rounds: int, steps: int, machine: dict[str, object]) -> Result:
    """Compile the program once and time its dispatches.

    Args:
        workload: its name.
        config: its run file.
        rounds: measured dispatches.
        steps: training steps in each.
        machine: facts for the record.
    """
    experiment = workload_experiment(config)
    template = state_template(experiment)
    with counted_compiles(run_steps.__name__) as compiles:
        lowered = lower_program(experiment)
        began = time.process_time()
        program = lowered.compile()
        compile_s = time.process_time() - began
        lines, memory, text = len(lowered.as_text().splitlines()), program.memory_analysis(), program.as_text()
        assert memory is not None and text is not None, "the backend tells nothing of its program"
        constant = largest_constant_bytes(text)
        # What compilation took is given back before the state is made.
        del lowered, text
        return_freed_memory()

        def dispatch(state: TrainState, n: int, seed: int) -> tuple[TrainState, Logs]:
            return program(experiment.target, state, jnp.asarray(n, jnp.int32), jnp.asarray(seed, jnp.uint32), None)

        products = bare_products(experiment) if isinstance(config.target, LMTarget) else None
        state = jax.block_until_ready(first_state(experiment))
        return_freed_memory()
        timed = _timed_rounds(dispatch, state, rounds, steps, products)
    cpu = [r.cpu_s_per_step for r in timed]
    return Result(
        workload=workload,
        cpu_s_per_step=statistics.median(cpu),
        wall_s_per_step=statistics.median(r.wall_s_per_step for r in timed),
        cpu_s_per_step_quartiles=_quartiles(cpu),
        steps_per_round=steps,
        counted_gflop=counted_gflop(experiment, template),
        roofline_fraction=roofline_fraction(counted_gflop(experiment, template), timed),
        peak_rss_mb=_peak_rss_mb(),
        compiles=len(compiles),
        compile_s=compile_s,
        program_lines=lines,
        state_bytes=state_bytes(template),
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        largest_constant_bytes=constant,
        rounds=tuple(timed),
        machine=machine,
        versions={"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
    )


Dispatch = Callable[[TrainState, int, int], tuple[TrainState, Logs]]


def workload_experiment(config: RunConfig) -> Experiment:
    """The objects of a workload: a fresh toy, or a language model with random weights on random tokens."""
    if isinstance(config.target, ToyTarget):
        return build(config, fresh_target(config.target))
    assert isinstance(config.data, TokenData)
    vocab, shape = 4019, (config.pd.batch_size, config.data.max_seq_len)
    target = init_simple_mlp_lm(vocab, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=512, seed=0)

    def draw(seed: Seed, step: Int[Array, ""]) -> Int[Array, "B T"]:
        return jax.random.randint(stream(seed, "data/train", step), shape, 0, vocab)

    return build(config, target, train_batch=draw)


@dataclass(frozen=True)
class Product:
    """A bare matrix product ``[n, k] @ [k, m]`` of a shape that the step has."""

    n: int
    k: int
    m: int

    @property
    def operations(self) -> int:
        """Multiply-add is 2."""
        return 2 * self.n * self.k * self.m

    def seconds(self, repeats: int) -> float:
        """CPU time of so many; the operands are made before and freed after, so that they don't count as the step's."""
        x, W = jax.block_until_ready((jnp.ones((self.n, self.k)), jnp.ones((self.k, self.m))))
        began = time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(_multiply(x, W))
        return time.process_time() - began


_multiply = jax.jit(jnp.matmul)


def bare_products(experiment: Experiment) -> list[Product]:
    """One product of all positions, compiled, for each weight shape of the decomposition and the CI function."""
    positions = math.prod(leading_of(experiment.config, experiment.target))
    shapes: set[tuple[int, int]] = set()
    for site in experiment.problem.sites:
        shapes |= {(site.d_in, site.d_out), (site.d_in, site.C), (site.C, site.d_out)}
    ci_fn = state_template(experiment).decomposition.ci_fn
    shapes |= {
        (int(x.shape[-2]), int(x.shape[-1])) for x in jax.tree.leaves(ci_fn) if x.ndim >= 2 and min(x.shape[-2:]) > 1
    }
    products = [Product(positions, k, m) for k, m in sorted(shapes)]
    large = [product for product in products if product.operations >= LEAST_PRODUCT]
    for product in large:
        product.seconds(1)
    return large


def roofline_fraction(gflop: float, rounds: Sequence[Round]) -> float | None:
    """Counted operations a second over the rate of bare products, the median over the rounds in which these are fast.

    Rounds in which another load slows the processor say little; where fewer than five reach ``FAST`` all count.
    """
    rated = [(r.matmul_gflop_per_s, gflop / r.cpu_s_per_step) for r in rounds if r.matmul_gflop_per_s is not None]
    if not rated:
        return None  # toys: matrix products are not what takes their time
    fast = [(rate, reached) for rate, reached in rated if rate >= FAST]
    return statistics.median(reached / rate for rate, reached in (fast if len(fast) >= ENOUGH else rated))


def _timed_rounds(
    dispatch: Dispatch, state: TrainState, rounds: int, steps: int, products: Sequence[Product] | None
) -> list[Round]:
    """Dispatches of ``steps`` steps each, after a short one with another number of steps and another seed."""
    state, _ = jax.block_until_ready(dispatch(state, 2 if steps == 1 else 1, 1))
    timed: list[Round] = []
    for _ in _progress(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(dispatch(state, steps, 0))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        timed.append(Round(cpu / steps, wall / steps, None if products is None else _rate(products)))
    return timed


def _rate(products: Sequence[Product]) -> float:
    """Billions of operations a CPU second of bare products, each repeated three times."""
    seconds = sum(product.seconds(REPEATS) for product in products)
    return_freed_memory()
    return REPEATS * sum(product.operations for product in products) / seconds / 1e9


def _progress(rounds: int) -> Iterator[int]:
    columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Without a refresh thread, whose CPU time would be measured too.
    with Progress(*columns, console=console(), auto_refresh=False) as bars:
        task = bars.add_task("rounds", total=rounds)
        for i in range(rounds):
            bars.refresh()
            yield i
            bars.advance(task)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def counted_gflop(experiment: Experiment, template: TrainState) -> float:
    """Operations of a step in billions, counted from shapes."""
    return sum(counted_operations(experiment, template).values()) / 1e9


def largest_constant_bytes(program: str) -> int:
    """Size of the largest constant in an optimised program: no weight may be one.

    Args:
        program: HLO text.
    """
    sizes = [0]
    for dtype, shape in re.findall(r"= (\w+)\[([\d,]*)\]\S* constant\(", program):
        entries = 1
        for size in filter(None, shape.split(",")):
            entries *= int(size)
        bits = re.search(r"\d+", dtype)
        sizes.append(entries * (int(bits.group()) if bits else 8) // 8)
    return max(sizes)


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def print_result(result: Result) -> None:
    """The figures as a table."""
    table = Table(title=f"Workload {result.workload}, one core, {len(result.rounds)} rounds", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _rows(result):
        table.add_row(name, value)
    Console(highlight=False).print(table)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    typer.echo(f"{result.machine['cpu']}, {result.machine['cores_allowed']} cores allowed; {versions}")


def _rows(result: Result) -> list[tuple[str, str]]:
    low, high = result.cpu_s_per_step_quartiles
    roofline = result.roofline_fraction
    return [
        ("CPU time a step, median", f"{1e3 * result.cpu_s_per_step:.2f} ms"),
        ("CPU time a step, quartiles", f"{1e3 * low:.2f} – {1e3 * high:.2f} ms"),
        ("wall-clock time a step, median", f"{1e3 * result.wall_s_per_step:.2f} ms"),
        ("counted operations a step", f"{result.counted_gflop:.4f} GFLOP"),
        ("roofline fraction", "matrix products don't rule" if roofline is None else f"{roofline:.2f}"),
        ("peak memory", f"{result.peak_rss_mb:.0f} MB"),
        ("compilations of the step", str(result.compiles)),
        ("compile time, CPU", f"{result.compile_s:.1f} s"),
        ("program", f"{result.program_lines} lines"),
        ("state", f"{result.state_bytes} bytes, {result.alias_bytes} of them updated in place"),
        ("temporaries", f"{result.temp_bytes / 1e6:.1f} MB"),
        ("largest constant", f"{result.largest_constant_bytes} bytes"),
    ]
