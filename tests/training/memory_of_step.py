"""Bytes a device that workload W's step takes: ``python memory_of_step.py DEVICES PRESET`` prints them as JSON."""

import json
import sys
from importlib import resources

import jax

from vpd.commands.bench import workload_experiment
from vpd.config import read_run_file
from vpd.config.document import read_document
from vpd.experiment import lower_program, place
from vpd.training.placed import placement_from

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    with resources.as_file(resources.files("vpd") / "recipes" / "bench-W.yaml") as path:
        document = read_document(path)
    document["runtime"] = {"placement": sys.argv[2]}
    config = read_run_file(document).config
    experiment = place(workload_experiment(config), placement_from(config.runtime, config.pd.batch_size))
    if experiment.placement is not None:
        jax.set_mesh(experiment.placement.mesh)
    found = lower_program(experiment).compile().memory_analysis()
    print(json.dumps({"arguments": found.argument_size_in_bytes, "temporaries": found.temp_size_in_bytes}))
