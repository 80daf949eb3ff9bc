"""The training and evaluation programs do not grow with depth, and those of big models compile."""

import copy
import time
from functools import partial
from typing import Any  # a run file is nested blocks of anything

import jax
import jax.numpy as jnp
import pytest
from training.abstract_runs import LLAMA_8B, Zeros, abstract_run, example, gigabytes

from vpd.config.run import Eval
from vpd.data.feed import HostBatches
from vpd.evaluation.accumulate import accumulate
from vpd.evaluation.suite import Suite
from vpd.experiment import Experiment, lower_program, state_template

BATCH, LENGTH = 2, 5
LOSSES = ("FaithfulnessLoss", "ImportanceMinimalityLoss", "StochasticReconSubsetLoss", "PersistentPGDReconLoss")


def tiny_glassllm(**changes: Any) -> dict[str, Any]:
    """The example's losses and matrices with small sizes."""
    document = copy.deepcopy(example("glassllm.yaml"))
    pd = document["pd"]
    assert tuple(loss["type"] for loss in pd["loss_metrics"]) == LOSSES
    pd |= {"batch_size": BATCH}
    for target in pd["decomposition_targets"]:
        target["C"] = 3
    size = {"d_model": 4, "n_blocks": 2, "attn_config": {"n_heads": 1, "max_len": 8}}
    pd["ci_config"] = {**pd["ci_config"], "simple_transformer_ci_cfg": size} | changes.pop("ci_config", {})
    document["data"] = {**document["data"], "max_seq_len": LENGTH}
    return document | changes


def tiny_values(depth: int) -> dict[str, object]:
    sizes = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": depth}
    return LLAMA_8B | sizes | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}


def tiny(depth: int, **changes: Any) -> Experiment:
    experiment = abstract_run(tiny_glassllm(**changes), tiny_values(depth))
    assert sum(site.depth for site in experiment.problem.sites) == 7 * depth
    return experiment


def lines(lowered: jax.stages.Lowered) -> int:
    return lowered.as_text().count("\n")


CHUNKWISE = {"mode": "chunkwise", "fn_type": "chunkwise_transformer", "sites_per_chunk": 7}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"ci_config": CHUNKWISE}, marks=pytest.mark.slow),
        pytest.param({"runtime": {"remat": "block"}}, marks=pytest.mark.slow),
    ],
)
def test_the_training_program_does_not_grow_with_depth(changes: dict[str, Any]) -> None:
    small, deep, deeper = (lines(lower_program(tiny(depth, **changes))) for depth in (2, 32, 64))
    print(f"program lines: {small} with 2 layers, {deep} with 32, {deeper} with 64")
    assert deep <= 1.1 * small
    assert abs(deeper - deep) <= 0.01 * deep


def lower_evaluation(experiment: Experiment) -> jax.stages.Lowered:
    document = example("glassllm.yaml")["eval"] | {"batch_size": BATCH}
    config = experiment.config.model_copy(update={"eval": Eval.model_validate(document)})
    batches = HostBatches(Zeros((BATCH, LENGTH)))
    suite = Suite(config, experiment.problem, experiment.target, batches)
    state = state_template(experiment)
    number, given = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((2, BATCH, LENGTH), jnp.int32)
    run = jax.jit(partial(accumulate, suite.what, experiment.problem, batches))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    adversaries = state.training.adversaries
    return run.lower(experiment.target, state.decomposition, adversaries, number, number, number, seed, given)


def test_the_evaluation_program_does_not_grow_with_depth() -> None:
    small, deep, deeper = (lines(lower_evaluation(tiny(depth))) for depth in (2, 32, 64))
    print(f"program lines: {small} with 2 layers, {deep} with 32, {deeper} with 64")
    assert deep <= 1.1 * small
    assert abs(deeper - deep) <= 0.01 * deep


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth() -> None:
    """Where the machine is loaded the times of one round say little: the least of three counts."""
    seconds: dict[int, float] = {}
    for _ in range(3):
        for depth in (2, 32):
            lowered = lower_program(tiny(depth))
            began = time.process_time()
            lowered.compile()
            seconds[depth] = min(seconds.get(depth, 1e9), time.process_time() - began)
    print(f"compile: {seconds[2]:.1f} s with 2 layers, {seconds[32]:.1f} s with 32")
    assert seconds[32] <= 1.3 * 1.2 * seconds[2]


def report(name: str, experiment: Experiment) -> None:
    """Lower, compile, and print what it takes."""
    began = time.perf_counter()
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention, lowered, needs it in bfloat16
        lowered = lower_program(experiment)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    print(
        f"{name}: {lines(lowered)} lines, traced in {traced - began:.1f} s, compiled in {done - traced:.1f} s; "
        f"target {gigabytes(experiment.target):.1f} GB, state {gigabytes(state_template(experiment)):.1f} GB, "
        f"arguments {memory.argument_size_in_bytes / 1e9:.1f} GB, of which {memory.alias_size_in_bytes / 1e9:.1f} GB "
        f"are written in place, temporaries {memory.temp_size_in_bytes / 1e9:.1f} GB"
    )
    assert memory.alias_size_in_bytes >= 0.999e9 * gigabytes(state_template(experiment))


@pytest.mark.slow
def test_one_layer_of_a_big_model_compiles() -> None:
    experiment = abstract_run(example("llama-3.1-8b-l18.yaml"), LLAMA_8B)
    assert [run.depth for run in experiment.target.layers] == [18, 1, 13]
    assert gigabytes(experiment.target) == pytest.approx(16.06, rel=1e-3)
    report("layer 18", experiment)


@pytest.mark.slow
def test_all_layers_of_a_big_model_compile() -> None:
    document = copy.deepcopy(example("llama-3.1-8b-l18.yaml"))
    names = ("gate_proj", "up_proj", "down_proj")
    document["pd"]["decomposition_targets"] = [
        {"module_pattern": f"model.layers.*.mlp.{name}", "C": 2048} for name in names
    ]
    document["pd"]["batch_size"] = 8
    experiment = abstract_run(document, LLAMA_8B)
    assert [site.depth for site in experiment.problem.sites] == [32, 32, 32]
    report("all layers", experiment)
