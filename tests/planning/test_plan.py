"""``vpd plan``: exact arguments, a count of operations, and one sentence for what can't be planned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tms_5-2.yaml"


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
