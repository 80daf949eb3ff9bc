"""Twenty steps of a workload on the devices of this process, written down for a comparison.

``python on_devices.py OUT WORKLOAD:PRESET …``: losses of every step, the state after them, and facts of the program.
With HOST:PORT and a number in PEERS it is one of two processes, of which the first writes.
"""

import json
import os
import re
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any  # a run file is nested blocks of anything

import jax
import jax.numpy as jnp
import numpy as np

from vpd.commands.bench import workload_experiment
from vpd.config import read_run_file
from vpd.config.document import read_document
from vpd.experiment import Experiment, first_state, lower_program, place
from vpd.hosts import gathered, is_first, join
from vpd.training.checkpoint import named_leaves
from vpd.training.placed import placement_from
from vpd.training.state import TrainState

STEPS = 20
ADAM = {"type": "adam", "beta1": 0.5, "beta2": 0.99, "lr_schedule": {"start_val": 0.01}}
SCOPES = {"T": ("c", "nsc", "bc"), "R": ("c", "nsc", "bc"), "W": ("c", "sc", "nsc", "bc", "bsc")}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def persistent(scope: str) -> dict[str, Any]:
    """A persistent adversary of this scope, with a warm-up ascent."""
    shape = {"type": scope} | ({"n_sources": 4} if scope == "nsc" else {})
    return {
        "type": "PersistentPGDReconLoss",
        "name": f"pgd_{scope}",
        "coeff": 0.5,
        "optimizer": ADAM,
        "scope": shape,
    } | {"n_warmup_steps": 1}


def workload(name: str, preset: str) -> Experiment:
    """A small T, R or W with an adversary of every scope, and a fresh one."""
    with resources.as_file(resources.files("vpd") / "recipes" / f"bench-{name}.yaml") as path:
        document = read_document(path)
    pd = document["pd"]
    pd["batch_size"] = {"T": 64, "R": 32, "W": 8}[name]
    pd["faithfulness_warmup_steps"] = 5
    if name == "R":
        document["target"] |= {"n_features": 16, "d_embed": 24, "d_mlp": 8}
        for target in pd["decomposition_targets"]:
            target["C"] = 16
    if name == "W":
        document["data"]["max_seq_len"] = 8
        for target, C in zip(pd["decomposition_targets"], (24, 16, 8, 8, 8, 16), strict=True):
            target["C"] = C
        size = {"d_model": 32, "n_blocks": 2, "mlp_hidden_dim": [64], "attn_config": {"n_heads": 2, "max_len": 8}}
        pd["ci_config"]["simple_transformer_ci_cfg"] = size
    fresh = {"type": "PGDReconLoss", "coeff": 0.5, "init": "random", "step_size": 0.1, "n_steps": 2, "mask_scope": "c"}
    kept = [loss for loss in pd["loss_metrics"] if not loss["type"].startswith("PersistentPGD")]
    pd["loss_metrics"] = [*kept, fresh, *(persistent(scope) for scope in SCOPES[name])]
    document["runtime"] = {"placement": preset}
    config = read_run_file(document).config
    experiment = workload_experiment(config)
    return place(experiment, placement_from(config.runtime, config.pd.batch_size))


def main(out: Path, cases: list[str]) -> None:
    """Run the cases one after the other."""
    for case in cases:
        name, _, preset = case.partition(":")
        experiment = workload(name, preset)
        if experiment.placement is not None:
            jax.set_mesh(experiment.placement.mesh)
        program = lower_program(experiment).compile()
        memory, text = program.memory_analysis(), program.as_text()
        assert memory is not None and text is not None
        state, logs = first_state(experiment), []
        for _ in range(STEPS):
            state, device_logs = program(
                experiment.target, state, jnp.asarray(1, jnp.int32), jnp.asarray(0, jnp.uint32), None
            )
            logs.append({key: float(value) for key, value in device_logs.items()})
        facts = {"unlike": unlike(state)}
        whole = gathered(state)
        if not is_first():
            continue
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
        np.savez(out / f"{name}-{preset}-{jax.device_count()}.npz", **named_leaves(whole))
        facts |= {
            "logs": logs,
            "collectives": Counter(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text)),
            "argument_bytes": memory.argument_size_in_bytes,
            "temp_bytes": memory.temp_size_in_bytes,
            "split": {n: leaf.size // leaf.addressable_shards[0].data.size for n, leaf in named.items()},
        }
        (out / f"{name}-{preset}-{jax.device_count()}.json").write_text(json.dumps(facts))


def unlike(state: TrainState) -> list[str]:
    """Arrays whose copies on several devices are not the same to the bit."""
    found: list[str] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        copies: dict[str, bytes] = {}
        for shard in leaf.addressable_shards:
            mine = np.asarray(shard.data).tobytes()
            if copies.setdefault(str(shard.index), mine) != mine:
                found.append(jax.tree_util.keystr(path, simple=True, separator="."))
    return found


if __name__ == "__main__":
    if peers := os.environ.get("PEERS"):
        address, number = peers.split()
        join(address, 2, int(number))
    main(Path(sys.argv[1]), sys.argv[2:])
