"""What was trained evaluates on four devices to what it evaluates to on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any  # metrics by name, as a file has them

import pytest
from tiny_language_model import make_place, written
from tiny_run import finish, start, write_file

SCRIPT = Path(__file__).with_name("evaluated_on_devices.py")
SHARED = {
    "type": "PGDReconLoss",
    "init": "random",
    "step_size": 0.1,
    "n_steps": 3,
    "mask_scope": "shared_across_batch",
}


def run_file(kind: str, folder: Path) -> Path:
    if kind == "toy":
        return write_file(folder, pd__steps=20)
    metrics = ["CI_L0", "CIMeanPerComponent", "CIHiddenActsReconLoss", "ComponentActivationDensity"]
    named = [{"type": name} for name in metrics] + [{"type": "CEandKLLosses", "rounding_threshold": 0.1}, SHARED]
    evaluation = {"batch_size": 8, "n_steps": 2, "every": 12, "slow_every": 12, "metrics": named}
    return written(make_place(folder), folder, eval=evaluation)


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested blocks by their path."""
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if parts is None:
        return {name: values}
    return {path: leaf for key, part in parts for path, leaf in flat(part, f"{name}/{key}").items()}


CASES = [
    pytest.param(kind, preset, marks=[] if (kind, preset) == ("toy", "ddp") else [pytest.mark.slow])
    for kind in ("toy", "language model")
    for preset in ("ddp", "fsdp")
]


@pytest.mark.devices
@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_metrics_at_one_and_four_devices(tmp_path: Path, kind: str, preset: str) -> None:
    code, out, err = finish(start("train", run_file(kind, tmp_path), "--out-dir", tmp_path / "runs", "--quiet"))
    assert code == 0, err
    found: list[dict[str, Any]] = []
    for devices in (1, 4):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, str(SCRIPT), out.splitlines()[-1], preset]
        done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(flat(json.loads(done.stdout)))
    one, four = found
    assert set(four) == set(one) and len(one) > 30
    for name, value in one.items():
        # Some of these are differences of cross-entropies, which are of order 1.
        near = 1e-5 if "CEandKL" in name else 1e-7
        expected = pytest.approx(value, rel=1e-5, abs=near, nan_ok=True) if isinstance(value, float) else value
        assert four[name] == expected, name
