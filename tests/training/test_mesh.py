"""One program for one device and many: the same losses and parameters, whatever is split over whichever devices."""

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any  # what a program noted down

import jax
import numpy as np
import pytest

from vpd.config.run import Runtime
from vpd.errors import ConfigError
from vpd.placement import Placement, mesh_of
from vpd.training.placed import placement_from

SCRIPT = Path(__file__).parent / "on_devices.py"
# Sums over the batch are taken in another order, a relative error of some 1e-7 that twenty steps of Adam may enlarge.
LOSSES, PARAMETERS = 1e-5, 1e-4


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``noted(workload, preset, devices)``: facts and final state, from a process with so many simulated devices."""
    folder = tmp_path_factory.mktemp("devices")

    @cache
    def run(workload: str, preset: str, devices: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, str(SCRIPT), str(folder), f"{workload}:{preset}"]
        done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        name = folder / f"{workload}-{preset}-{devices}"
        with np.load(f"{name}.npz") as state:
            return json.loads(Path(f"{name}.json").read_text()), dict(state)

    return run


ROWS = [(workload, "ddp", n) for workload in "TRW" for n in (2, 4, 8)]
ROWS += [(workload, preset, 8) for workload in "TRW" for preset in ("zero", "fsdp")]
FAST = {("T", "ddp", 4), ("T", "fsdp", 8)}
CASES = [
    pytest.param(*row, id="-".join(map(str, row)), marks=[] if row in FAST else [pytest.mark.slow]) for row in ROWS
]


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("workload", ["T", "R", "W"])
def test_the_same_run_in_two_processes(noted: Any, tmp_path: Path, workload: str) -> None:
    """Of two devices each. Under `ddp`: with split parameters XLA's own collectives on CPU don't keep their order."""
    one, state = noted(workload, "ddp", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, str(SCRIPT), str(tmp_path), f"{workload}:ddp"]
    envs = [os.environ | {"XLA_FLAGS": flags, "PEERS": f"{address} {number}"} for number in (0, 1)]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in envs]
    said = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    name = tmp_path / f"{workload}-ddp-4"
    many = json.loads(Path(f"{name}.json").read_text())
    assert many["unlike"] == [] and many["collectives"].get("all-reduce", 0) > 0
    for a, b in zip(one["logs"], many["logs"], strict=True):
        assert b == pytest.approx(a, rel=LOSSES)
    with np.load(f"{name}.npz") as other:
        for path, array in state.items():
            if path.startswith("decomposition"):
                assert np.linalg.norm(array - other[path]) <= PARAMETERS * np.linalg.norm(array), path


@pytest.mark.devices
@pytest.mark.parametrize(("workload", "preset", "devices"), CASES)
def test_the_same_run_on_any_number_of_devices(noted: Any, workload: str, preset: str, devices: int) -> None:
    one, state = noted(workload, "ddp", 1)
    many, other = noted(workload, preset, devices)
    assert not one["collectives"] and many["collectives"].get("all-reduce", 0) > 0
    for step, (a, b) in enumerate(zip(one["logs"], many["logs"], strict=True)):
        assert b == pytest.approx(a, rel=LOSSES), step
    for name, array in state.items():
        if name.startswith("decomposition"):
            difference = np.linalg.norm(array - other[name])
            assert difference <= PARAMETERS * np.linalg.norm(array), name
    # What is the same on several devices is so to the bit: sources that all examples share above all.
    assert many["unlike"] == []
    shared = [parts for name, parts in many["split"].items() if "_c.sources" in name or "_sc.sources" in name]
    own = [parts for name, parts in many["split"].items() if "_bc.sources" in name or "_bsc.sources" in name]
    assert set(shared) == {1} and set(own) == {devices}
    if preset == "ddp":
        assert {parts for name, parts in many["split"].items() if "optimizer" in name} == {1}
    else:
        matrices = [n for n, x in state.items() if "optimizer" in n and any(size % devices == 0 for size in x.shape)]
        assert matrices and {many["split"][name] for name in matrices} == {devices}


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("preset", ["zero", "fsdp"])
def test_temporaries_of_eight_devices_are_an_eighth(preset: str) -> None:
    def bytes_of(devices: int) -> dict[str, int]:
        command = [sys.executable, str(SCRIPT.with_name("memory_of_step.py")), str(devices), preset]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    one, eight = bytes_of(1), bytes_of(8)
    assert eight["temporaries"] <= 1.15 * one["temporaries"] / 8
    assert eight["arguments"] <= 1.15 * one["arguments"] / 8


def runtime(**values: object) -> Runtime:
    return Runtime.model_validate(values)


REFUSED = [
    ({"mesh": {"data": 2}}, "data: 2, fsdp: 1, model: 1} does not fit"),
    ({"mesh": {"data": -1, "fsdp": 2}}, "does not fit the devices that are there, of which there are 1"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_a_mesh_that_does_not_fit_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        placement_from(runtime(**values), 8)


def test_a_single_device_needs_no_mesh() -> None:
    told: list[str] = []
    assert placement_from(runtime(), 8, told.append) is None and told == []
    assert placement_from(runtime(placement="fsdp", mesh={"fsdp": -1, "data": 1}), 8) is None
    assert placement_from(runtime(dp=8), 8, told.append) is None
    assert told == ["runtime.dp asks for 8 devices; the run uses 1 of 1, which divide pd.batch_size 8"]


@pytest.mark.parametrize(
    ("preset", "role", "shape", "in_parts", "wanted"),
    [
        ("ddp", "master", (8, 4), False, (None, None)),
        ("zero", "frozen", (8, 4), False, (None, None)),
        ("zero", "moment", (8, 4), False, ("fsdp", "model")),
        ("fsdp", "frozen", (2, 6, 12), False, (None, "model", "fsdp")),
        ("fsdp", "master", (3, 5), False, (None, None)),
        ("fsdp", "master", (2,), False, ("model",)),
        ("fsdp", "master", (), False, ()),
        ("zero", "master", (1, 8, 64), True, (None, "fsdp", "model")),
        ("zero", "master", (2, 8, 64), True, ("model", "fsdp", None)),
        ("zero", "master", (3, 64), True, (None, "fsdp")),
    ],
)
def test_what_an_array_is_split_along(
    preset: Any, role: Any, shape: tuple[int, ...], in_parts: bool, wanted: tuple[str | None, ...]
) -> None:
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "model"))
    assert tuple(Placement(mesh, preset).parameter(role, shape, in_parts).spec) == wanted


def test_a_mesh_has_its_axes() -> None:
    assert dict(mesh_of((1, 1, 1)).shape) == {"data": 1, "fsdp": 1, "model": 1}
