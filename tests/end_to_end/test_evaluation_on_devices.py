"""A run on four devices evaluates to what it evaluates to on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any  # metrics by name, as a file has them

import pytest
from tiny_run import write_file


def evaluations(run: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["metrics"] for record in records if record["kind"] == "eval"}


@pytest.mark.devices
def test_metrics_at_one_and_four_devices(tmp_path: Path) -> None:
    """Before the first update nothing but the order of sums differs; after some, what training makes of that."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        folder.mkdir()
        file = write_file(folder, runtime={"placement": "ddp"})
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "vpd", "train", file, "--steps", "20", "--out-dir", folder / "runs", "--quiet"]
        done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        run = folder / "runs" / "tiny"
        mesh = json.loads((run / "run.json").read_text())["mesh"]
        assert (mesh["data"] if mesh else 1) == devices
        found[devices] = evaluations(run)
    for step, tolerance in ((0, 1e-5), (20, 1e-3)):
        one, four = found[1][step], found[4][step]
        assert set(one) == set(four) and len(one) > 20
        for name, value in one.items():
            assert four[name] == pytest.approx(value, rel=tolerance, abs=1e-7), (step, name)
