"""`vpd bench`: the record it prints, and what it counts."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from vpd.commands.bench import (
    WORKLOADS,
    Round,
    bench_command,
    counted_compiles,
    counted_gflop,
    largest_constant_bytes,
    print_result,
    roofline_fraction,
    workload_config,
    workload_experiment,
)
from vpd.commands.bench import Result as BenchResult
from vpd.errors import VpdError
from vpd.experiment import state_template

KEYS = {
    "workload",
    "cpu_s_per_step",
    "wall_s_per_step",
    "cpu_s_per_step_quartiles",
    "steps_per_round",
    "counted_gflop",
    "roofline_fraction",
    "peak_rss_mb",
    "compiles",
    "compile_s",
    "program_lines",
    "state_bytes",
    "alias_bytes",
    "temp_bytes",
    "largest_constant_bytes",
    "rounds",
    "machine",
    "versions",
}


def test_record() -> None:
    """In a process of its own, which ends up on one core."""
    main = "from vpd.cli import main; main()"
    command = [sys.executable, "-c", main, "bench", "T", "--rounds", "3", "--steps", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    record = json.loads(done.stdout)
    assert set(record) == KEYS
    assert "3/3" in done.stderr
    assert record["compiles"] == 1
    assert record["alias_bytes"] == record["state_bytes"]
    assert record["largest_constant_bytes"] < 1000
    assert record["roofline_fraction"] is None
    assert len(record["rounds"]) == 3
    rounds = sorted(r["cpu_s_per_step"] for r in record["rounds"])
    assert record["cpu_s_per_step"] == rounds[1]
    low, high = record["cpu_s_per_step_quartiles"]
    assert rounds[0] <= low <= rounds[1] <= high <= rounds[2]
    assert 0.002 < record["cpu_s_per_step"] < record["wall_s_per_step"] * 1.5
    # 4096 positions: gates of width 16 on 40 scalars, three passes, and the small matrices.
    assert 3 * 2 * 4096 * 40 * 32 / 1e9 < record["counted_gflop"] < 0.1


def test_workload_t() -> None:
    config = workload_config("T")
    assert config.pd.batch_size == 4096
    assert config.tied_pairs == (("linear1", "linear2"),)
    assert [type(loss).__name__ for loss in config.pd.loss_metrics] == [
        "ImportanceMinimalityLoss",
        "StochasticReconLoss",
        "StochasticReconLayerwiseLoss",
    ]


@pytest.mark.parametrize("name", ["t", "X", ""])
def test_unknown_workloads(name: str) -> None:
    with pytest.raises(VpdError) as caught:
        bench_command(name, 1, 1, True)
    assert all(known in str(caught.value) for known in WORKLOADS)
    assert "unknown" in str(caught.value)


def test_workload_w_is_counted() -> None:
    """Nothing is compiled: parts of 195 GFLOP, of which the attention of the target is one."""
    experiment = workload_experiment(workload_config("W"))
    assert [site.depth for site in experiment.problem.sites] == [2] * 6
    assert sum(site.depth * site.C for site in experiment.problem.sites) == 7104
    assert counted_gflop(experiment, state_template(experiment)) == pytest.approx(195.2, rel=1e-3)


def test_fraction_of_fast_rounds() -> None:
    slow, fast = Round(2.0, 2.0, 90.0), Round(1.0, 1.0, 120.0)
    assert roofline_fraction(96.0, [Round(1.0, 1.0)]) is None
    assert roofline_fraction(96.0, [slow] * 9 + [fast] * 5) == pytest.approx(96 / 120)
    assert roofline_fraction(96.0, [slow] * 9 + [fast] * 4) == pytest.approx(48 / 90)


def test_compiles_are_counted_by_name() -> None:
    def counted(x: jax.Array) -> jax.Array:
        return x * 3 + 1

    def other(x: jax.Array) -> jax.Array:
        return x * 3 + 2

    with counted_compiles("counted") as seconds:
        f = jax.jit(counted)
        f(jnp.zeros(3))
        f(jnp.ones(3))
        assert len(seconds) == 1
        f(jnp.zeros(4))
        jax.jit(other)(jnp.zeros(3))
        assert len(seconds) == 2
    jax.jit(counted)(jnp.zeros(5))
    assert len(seconds) == 2


def test_largest_constant() -> None:
    table = jnp.arange(1000, dtype=jnp.float32) ** 2

    def closed_over(x: jax.Array) -> jax.Array:
        return x @ table

    text = jax.jit(closed_over).lower(jnp.zeros(1000)).compile().as_text()
    assert text is not None
    assert largest_constant_bytes(text) >= 4000
    program = (
        "  %a = s32[] constant(1)\n  %b = bf16[3,5]{1,0} constant({...})\n  ROOT %c = pred[7]{0} constant({...})\n"
    )
    assert largest_constant_bytes(program) == 30
    assert largest_constant_bytes("") == 0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = BenchResult(
        workload="T",
        cpu_s_per_step=0.008,
        wall_s_per_step=0.009,
        cpu_s_per_step_quartiles=(0.007, 0.0085),
        steps_per_round=5,
        counted_gflop=0.05,
        roofline_fraction=None,
        peak_rss_mb=math.pi,
        compiles=1,
        compile_s=4.0,
        program_lines=1889,
        state_bytes=25,
        alias_bytes=25,
        temp_bytes=8_600_000,
        largest_constant_bytes=16,
        rounds=(Round(0.008, 0.009),),
        machine={"cpu": "a processor", "cores_allowed": 2},
        versions={"jax": "0"},
    )
    print_result(result)
    out = capsys.readouterr().out
    for shown in ("8.00 ms", "7.00 – 8.50 ms", "9.00 ms", "0.0500 GFLOP", "1889 lines", "a processor", "jax 0"):
        assert shown in out
