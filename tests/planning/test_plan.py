"""``vpd plan``: exact arguments, a count of operations, and one sentence for what can't be planned."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest

from vpd.config import RunConfig, read_run_file
from vpd.config.document import read_document
from vpd.experiment import state_template
from vpd.planning.abstract import abstract_experiment, abstract_target, for_accelerators
from vpd.planning.operations import counted_operations
from vpd.planning.plan import Memory

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "tms_5-2.yaml"


def plan(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, which simulates the devices."""
    command = [str(Path(sys.executable).with_name("vpd")), "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=240)


def test_a_toy_on_four_devices() -> None:
    done = plan(EXAMPLE, "--devices", 4, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    compiled, memory = found["compiled"], found["compiled"]["memory"]
    assert (found["devices"], found["verdict"]) == (4, "fits")
    assert sum(memory["arguments"].values()) == memory["arguments_total"]
    assert memory["arguments_total"] <= compiled["argument_bytes"] <= memory["arguments_total"] + 64
    assert found["operations"]["total"] == sum(found["operations"]["parts"].values()) > 0
    assert memory["peak"]["estimate"] == memory["arguments_total"] + memory["estimate"]
    assert memory["peak"]["shapes"] == memory["arguments_total"] + sum(memory["shapes"].values())
    assert compiled["collectives"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((EXAMPLE, "--devices", 4, "--hbm", 0), "--hbm: 0 GB hold nothing"),
        ((EXAMPLE, "--devices", 0), "--devices: 0 is not between"),
        (("nowhere.yaml", "--devices", 2), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments: tuple[object, ...], said: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@dataclass(frozen=True)
class Model:
    """Sizes of a language model and of what takes it apart, as the cost model of docs/plan.md has them.

    Attributes:
        layer: multiply-adds of a layer's matrices at one position.
        width: of the stream.
        vocab: tokens.
        layers: how many.
        sites: ``(d_in, C, d_out)`` of each decomposed matrix.
        before: of one position, the multiply-adds before the first of these, which masked forwards leave out.
        ci: width, blocks and MLP width of the CI function.
    """

    layer: int
    width: int
    vocab: int
    layers: int
    sites: list[tuple[int, int, int]]
    before: int
    ci: tuple[int, int, int]

    def step(self, positions: int, sequence: int, R: int = 2, K: int = 2) -> float:
        """``A (1 + 2R + 2K) + Q (3R + 2K) + 3F − F_in + 6 Σ d_in C d_out + 15 P``."""
        attention = 2 * sequence * self.width
        clean = self.layers * (self.layer + attention) + self.width * self.vocab
        Q = sum(C * (d_in + d_out) for d_in, C, d_out in self.sites)
        width, blocks, mlp = self.ci
        F_in = width * sum(d_in for d_in, _, _ in self.sites)
        F = F_in + blocks * (4 * width**2 + 2 * sequence * width + 2 * width * mlp)
        F += width * sum(C for _, C, _ in self.sites)
        each = clean + (clean - self.before) * (2 * R + 2 * K) + Q * (3 * R + 2 * K) + 3 * F - F_in
        return 2 * positions * each + 6 * sum(prod(site) for site in self.sites) + 15 * (Q + F)


PILE = [(768, 3072, 3072), (3072, 3584, 768), *[(768, C, 768) for C in (512, 512, 1024, 1024)]]
EIGHT_B = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336
BEFORE_18 = 18 * (EIGHT_B + 2 * 512 * 4096) + (2 * 4096 * 5120 + 2 * 512 * 4096)
CI = (4096, 8, 16384)


def mlps(C: int, layers: int) -> list[tuple[int, int, int]]:
    return [(4096, C, 14336), (4096, C, 14336), (14336, C, 4096)] * layers


MODELS = {
    "pile-4L": Model(4 * 768**2 + 2 * 768 * 3072, 768, 50277, 4, PILE * 4, 0, (2048, 8, 8192)),
    "llama-3.1-8b-l18": Model(EIGHT_B, 4096, 128256, 32, mlps(20000, 1), BEFORE_18, CI),
    "all 32 layers": Model(EIGHT_B, 4096, 128256, 32, mlps(2048, 32), 0, CI),
}


def run_file(name: str) -> tuple[RunConfig, Path]:
    """An example, or the one of an 8B model with the MLPs of all of its layers."""
    path = EXAMPLES / f"{name if name in ('pile-4L', 'llama-3.1-8b-l18') else 'llama-3.1-8b-l18'}.yaml"
    document = read_document(path)
    if name == "all 32 layers":
        sites = [{"module_pattern": f"model.layers.*.mlp.{m}_proj", "C": 2048} for m in ("gate", "up", "down")]
        document["pd"] = {**document["pd"], "decomposition_targets": sites}
    return for_accelerators(read_run_file(document).config), path


@pytest.mark.parametrize("name", MODELS)
def test_counted_operations_are_those_of_the_cost_model(name: str) -> None:
    config, path = run_file(name)
    experiment = abstract_experiment(config, abstract_target(config, path, None)[0])
    counted = sum(counted_operations(experiment, state_template(experiment)).values())
    assert counted == pytest.approx(MODELS[name].step(64 * 512, 512), rel=0.02)


def test_it_fits_where_both_peaks_do() -> None:
    memory = Memory({"V and U": 60}, 60, 60, estimate=10, shapes={"gradients": 20}, phase="optimizers")
    assert [memory.verdict(size) for size in (80, 79, 70, 69)] == ["fits", "unclear", "unclear", "does not fit"]
    assert replace(memory, estimate=30).verdict(85) == "unclear"
