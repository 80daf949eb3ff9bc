"""A run file small enough to be trained in seconds, and what tests ask of its run directory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple  # a run file is nested blocks of anything; tests edit it freely

import jax
import numpy as np
import pytest

from vpd import RunError, cli, open_run
from vpd.config.document import write_document
from vpd.experiment import build, reopened_target, state_template
from vpd.run_directory import RunDirectory
from vpd.training.checkpoint import Checkpoints, named_leaves

Document = dict[str, Any]


class Called(NamedTuple):
    """How a call of ``vpd`` ended."""

    code: int
    out: str
    err: str


Vpd = Callable[..., Called]


def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> Called:
    """``vpd`` with arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["vpd", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main()
    code = left.value.code
    return Called(code if isinstance(code, int) else 0, *capfd.readouterr())


TINY: Document = {
    "target": {"n_features": 5, "n_hidden": 2, "pretrain": {"steps": 50, "batch_size": 64, "lr": 5e-3}},
    "data": {"feature_probability": 0.05},
    "pd": {
        "seed": 0,
        "n_mask_samples": 1,
        "decomposition_targets": [{"module_pattern": "linear1", "C": 6}, {"module_pattern": "linear2", "C": 6}],
        "ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [8]},
        "steps": 60,
        "batch_size": 64,
        "faithfulness_warmup_steps": 20,
        "loss_metrics": [
            {"type": "FaithfulnessLoss", "coeff": 1.0},
            {"type": "ImportanceMinimalityLoss", "coeff": 3e-3, "pnorm": 1.0, "beta": 0.0},
            {"type": "StochasticReconLoss", "coeff": 1.0},
            {
                "type": "PersistentPGDReconLoss",
                "coeff": 0.5,
                "scope": {"type": "bc"},
                "n_warmup_steps": 2,
                "start_frac": 0.3,
                "optimizer": {"type": "adam", "beta1": 0.5, "beta2": 0.99, "lr_schedule": {"start_val": 0.01}},
            },
        ],
        "components_optimizer": {"lr_schedule": {"start_val": 1e-2, "fn_type": "cosine", "final_val_frac": 0.0}},
        "ci_fn_optimizer": {"lr_schedule": {"start_val": 1e-2, "fn_type": "cosine", "final_val_frac": 0.0}},
    },
    "cadence": {"train_log_every": 5, "save_every": 10},
    "eval": {
        "batch_size": 64,
        "n_steps": 2,
        "every": 20,
        "slow_every": 40,
        "slow_on_first_step": False,
        "metrics": [
            {"type": "IdentityCIError", "identity_ci": [{"layer_pattern": "linear*", "n_features": 5}]},
            {"type": "CI_L0", "ci_alive_threshold": 0.1},
            {
                "type": "PGDReconLoss",
                "init": "random",
                "step_size": 0.1,
                "n_steps": 3,
                "mask_scope": "shared_across_batch",
            },
            {"type": "CIMaskedReconLoss"},
            {"type": "CIMeanPerComponent"},
        ],
    },
}


def tiny(**changes: object) -> Document:
    """The tiny file with dotted keys replaced, dots written as two underscores."""
    return replaced(TINY, changes)


def replaced(document: Document, changes: Mapping[str, object]) -> Document:
    """A copy in which dotted keys, dots written as two underscores, are replaced."""
    document = deepcopy(document)
    for key, value in changes.items():
        *above, last = key.split("__")
        owner = document
        for name in above:
            owner = owner[name]
        owner[last] = value
    return document


def write_file(folder: Path, name: str = "tiny.yaml", **changes: object) -> Path:
    """The tiny file on disk."""
    path = folder / name
    path.write_text(write_document(tiny(**changes)))
    return path


def vpd_command(*arguments: object) -> list[str]:
    """The installed program, in a process of its own."""
    return [str(Path(sys.executable).with_name("vpd")), *map(str, arguments)]


def start(*arguments: object, cwd: Path | None = None, **environment: object) -> "subprocess.Popen[str]":
    """Start ``vpd`` as a process, with more in its environment."""
    env = os.environ | {name: str(value) for name, value in environment.items()}
    pipe = subprocess.PIPE
    return subprocess.Popen(vpd_command(*arguments), cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)


def finish(process: "subprocess.Popen[str]", seconds: float = 240) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def one_line(err: str) -> str:
    """The only line on standard error."""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("vpd: ") and "Traceback" not in err, err
    return err.strip()


def saved_steps(run_dir: Path) -> list[int]:
    """Finished checkpoints as the folders say."""
    return sorted(int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdecimal())


def final_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every leaf of the last saved state, training included."""
    directory = RunDirectory(run_dir)
    run = open_run(run_dir)
    template = state_template(build(run.config, reopened_target(directory, run.config)))
    checkpoints = Checkpoints(directory.checkpoints, writable=False)
    state = checkpoints.load_state(saved_steps(run_dir)[-1], template)
    checkpoints.close()
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(jax.device_get(state)).items()}


def records(run_dir: Path) -> list[Document]:
    """The lines of metrics.jsonl without their times."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assert_same_run(a: Path, b: Path) -> None:
    """The same parameters to the bit, the same records, the same figures."""
    assert final_bytes(a) == final_bytes(b)
    assert records(a) == records(b)
    figures = [sorted(str(p.relative_to(d)) for p in d.glob("figures/[0-9]*/*")) for d in (a, b)]
    assert figures[0] == figures[1]
    assert [(d / "target.safetensors").exists() for d in (a, b)] in ([True, True], [False, False])
    for name in ("config.yaml", "target.safetensors") if (a / "target.safetensors").exists() else ("config.yaml",):
        differ = [line for line in (a / name).read_bytes().split(b"\n") if line not in (b / name).read_bytes()]
        assert not differ or all(line.startswith((b"run_id", b"out_dir")) for line in differ)


def assert_nothing_half_written(run_dir: Path) -> str:
    """What a reader may meet is whole; returns how far the run has come."""
    if not run_dir.exists():
        return "before the run directory"
    for path in run_dir.glob("*.json"):
        json.loads(path.read_bytes())
    assert (run_dir / "config.yaml").read_bytes().endswith(b"\n")
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n") if metrics.exists() else [b""]
    assert lines[-1] == b"", "a record is cut short"
    steps = [json.loads(line)["step"] for line in lines[:-1]]
    report = run_dir / "report.html"
    assert not report.exists() or report.read_text().rstrip().endswith("</html>")
    for folder in (run_dir / "figures").glob("[0-9]*"):
        pictures = {p.stem: p.read_bytes() for p in folder.glob("*.png")}
        assert set(pictures) == set(json.loads((folder / "captions.json").read_bytes()))
        assert all(b"IEND" in content[-12:] for content in pictures.values())
    try:
        opened = f"opens at {open_run(run_dir).step}"
    except RunError as error:
        assert "no finished checkpoint" in str(error)
        opened = "nothing saved"
    return f"{_phase(run_dir, steps)}, {opened}"


def _phase(run_dir: Path, steps: list[int]) -> str:
    names = [p.name for p in run_dir.rglob("*")]
    if json.loads((run_dir / "run.json").read_bytes())["status"] == "finished":
        return "reporting"
    if any("orbax-checkpoint-tmp" in name for name in names):
        return "saving"
    if any(p.name.startswith(".") for p in (run_dir / "figures").glob("*")):
        return "drawing"
    if any(name.startswith((".metrics.jsonl.", ".run.json.")) for name in names):
        return "writing a small file"
    if not (run_dir / "checkpoints").exists():
        return "building"
    return f"training at {max(steps)}" if steps else "compiling or warming up"
