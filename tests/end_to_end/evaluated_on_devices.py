"""Metrics of a run's newest checkpoint on all devices: ``python evaluated_on_devices.py RUN PRESET``."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import jax

from vpd.config import read_run_file
from vpd.config.run import Runtime
from vpd.evaluation.suite import Suite
from vpd.experiment import build, place, put_state, state_template
from vpd.run_directory import RunDirectory
from vpd.training.checkpoint import Checkpoints
from vpd.training.placed import placement_from

if __name__ == "__main__":
    directory = RunDirectory(Path(sys.argv[1]))
    config = read_run_file(directory.config).config
    placement = placement_from(Runtime.model_validate({"placement": sys.argv[2]}), config.pd.batch_size)
    assert (1 if placement is None else placement.batch_shards) == len(jax.devices())
    with nullcontext() if placement is None else jax.set_mesh(placement.mesh):
        experiment = place(build(config), placement)
        assert experiment.eval_batch is not None
        checkpoints = Checkpoints(directory.checkpoints, writable=False)
        state = checkpoints.load_state(max(checkpoints.steps()), state_template(experiment))
        state = put_state(experiment, state)
        suite = Suite(config, experiment.problem, experiment.target, experiment.eval_batch)
        found = suite.evaluate(state.decomposition, state.training.adversaries, int(state.training.step))
    print(json.dumps({"metrics": found.metrics, "health": found.vital_signs}))
