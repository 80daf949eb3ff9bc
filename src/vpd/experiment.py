"""From a run file to its objects: target, data, objective, first state, the training program."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from vpd.config import changed_fields, read_run_file
from vpd.config.checks import check_sites
from vpd.config.run import RunConfig
from vpd.config.targets import FeatureData, LMTarget, PythonTarget, StoredTarget, TokenData
from vpd.data.build import Sampler, feature_batches, sampled_batches, sequence_batches
from vpd.data.feed import Batches, Given, HostBatches, in_program, shape_given
from vpd.errors import RunError
from vpd.hosts import several
from vpd.machine import compiler_options
from vpd.placement import Placement, put
from vpd.progress import Show, preparing_meter, say, target_meter, warmup_meter
from vpd.run_directory import (
    RunDirectory,
)
from vpd.targets import GPT2, TMS, Induction, LanguageModel, Llama, LlamaSimpleMLP, ResidMLP, Target, frozen_weights
from vpd.targets.build import build_toy, fresh_target, load_stored
from vpd.targets.checkpoint import load_language_model
from vpd.targets.fingerprint import weights_fingerprint
from vpd.targets.traced import TracedTarget
from vpd.targets.traced_build import refuse_another_network, refuse_missing_network
from vpd.targets.weights import Toy, load_target
from vpd.training.build import cut_for, init_state, problem_from, sites_from
from vpd.training.checkpoint import Checkpoints
from vpd.training.placed import state_shardings
from vpd.training.state import TrainState
from vpd.training.step import Logs, Problem
from vpd.training.step import run_steps as steps_in_one_program
from vpd.training.warmup import faithfulness_warmup

AnyTarget = Toy | LanguageModel | TracedTarget


@dataclass(frozen=True)
class Experiment:
    """The objects that a run file describes.

    Attributes:
        config: the run file.
        target: the frozen network.
        problem: the static part of training.
        train_batch: of (seed, step).
        eval_batch: of (seed, index); None where nothing is evaluated.
        data: where the batches of a traced target come from.
        placement: on the devices that the run uses; None on a single one.
    """

    config: RunConfig
    target: AnyTarget
    problem: Problem
    train_batch: Batches
    eval_batch: Batches | None
    data: Sampler | None = None
    placement: Placement | None = None


def build(
    config: RunConfig,
    target: AnyTarget | None = None,
    quiet: bool = True,
    train_batch: Batches | None = None,
    data: Sampler | None = None,
) -> Experiment:
    """Turn a run file into its objects; trains the target where it is not given and not cached.

    Args:
        config: read and supported.
        target: the frozen network, where it is at hand already.
        quiet: no progress bar while the target is trained or text is prepared.
        train_batch: what to train on, where it is not what the run file says.
        data: where the batches of a traced target come from; without it nothing can be trained or evaluated.
    """
    target = target or _target(config, quiet)
    runtime = config.runtime
    bfloat16 = jax.default_backend() != "cpu" if runtime.autocast_bf16 is None else runtime.autocast_bf16
    if isinstance(config.target, StoredTarget | LMTarget | PythonTarget):
        check_sites(config, {name: (d_in, d_out) for name, (d_in, d_out, _) in target.matrices().items()})
    sites = sites_from(config.pd, target, config.tied_pairs)
    target = cut_for(target, sites)
    problem = problem_from(config.pd, sites, config.has_sequence, bfloat16, runtime.remat_recon_forwards)
    problem = replace(problem, remat_layers=runtime.remat == "block", reuse_prefix=runtime.reuse_prefix)
    evaluated = config.eval and batches(config, target, config.eval.batch_size, "eval", quiet, data)
    train_batch = train_batch or batches(config, target, config.pd.batch_size, "train", quiet, data)
    return Experiment(config, target, problem, train_batch, evaluated, data)


def batches(
    config: RunConfig,
    target: AnyTarget,
    batch_size: int,
    name: str,
    quiet: bool = True,
    data: Sampler | None = None,
) -> Batches:
    """Batches of one named stream, a function of (seed, step).

    Args:
        config: the run file.
        target: the network that reads them.
        batch_size: examples a batch.
        name: ``train``, ``eval`` or ``pretrain``.
        quiet: no progress bar while text is prepared.
        data: where the batches of a traced target come from.
    """
    match target:
        case TMS() | ResidMLP():
            assert isinstance(config.data, FeatureData)
            low = -1.0 if isinstance(target, ResidMLP) else 0.0
            return feature_batches(config.data, target.n_features, batch_size, name, low)
        case Induction():
            return sequence_batches(target.wte.shape[0], target.seq_len, batch_size, name)
        case TracedTarget():
            return sampled_batches(data, target.batch, batch_size, name)
        case LlamaSimpleMLP() | Llama() | GPT2():
            from vpd.data.text_build import prepared_folder, text_batches  # Arrow, which only text needs

            assert isinstance(config.data, TokenData)
            watch = partial(preparing_meter, quiet=quiet)
            folder = prepared_folder(config.data, watch, target.vocab_size, config.eval is not None)
            rows = text_batches(config.data, folder, batch_size, config.pd.seed, name)
            several = config.runtime.steps_per_dispatch
            return HostBatches(rows, 1 if several == "auto" else several)


def leading_of(config: RunConfig, target: AnyTarget) -> tuple[int, ...]:
    """Shape of the positions of a training batch: ``(batch,)`` or ``(batch, sequence)``."""
    batch = config.pd.batch_size
    if isinstance(target, TracedTarget):
        return target.leading(jax.ShapeDtypeStruct((batch, *target.batch.shape[1:]), target.batch.dtype))
    if isinstance(config.data, TokenData):
        return (batch, config.data.max_seq_len)
    return (batch, target.seq_len) if isinstance(target, Induction) else (batch,)


def _target(config: RunConfig, quiet: bool) -> AnyTarget:
    block = config.target
    if isinstance(block, LMTarget):
        return load_language_model(block.spec, block.weights_dtype)[0]
    if isinstance(block, PythonTarget):
        raise refuse_missing_network(block)
    if isinstance(block, StoredTarget):
        return load_stored(block, config.target_kind)
    draw = batches(config, fresh_target(block), block.pretrain.batch_size, "pretrain")
    data = config.data.model_dump(mode="json") if config.data else None
    seed = jnp.asarray(block.pretrain.seed, jnp.uint32)
    return build_toy(block, data, partial(draw, seed), partial(target_meter, quiet=quiet))


@dataclass(frozen=True)
class Parent:
    """The checkpoint of another run that a run begins from.

    Attributes:
        directory: the other run.
        step: of its checkpoint.
        run_id: the other run's.
    """

    directory: RunDirectory
    step: int
    run_id: str

    def as_record(self) -> dict[str, object]:
        """What ``run.json`` keeps of it."""
        return {"path": str(self.directory.path), "step": self.step, "run_id": self.run_id}


def find_parent(experiment: Experiment) -> Parent | None:
    """The parent that ``resume_provenance`` names, with a good checkpoint that fits; None where it names none.

    Raises:
        RunError: no such run or checkpoint, or one with other sites, C or CI function.
    """
    block = experiment.config.resume_provenance
    if block is None:
        return None
    directory = RunDirectory(Path(block.parent_run_dir).expanduser().resolve())
    facts = directory.read_facts()
    if facts.get("kind") == "pretraining":
        raise RunError(f"{directory.path} holds a pretraining run; resume_provenance takes a decomposition")
    other = changed_fields(read_run_file(directory.config).config, experiment.config).trajectory
    functions = [key for key in other if key == "pd.ci_config" or key.startswith("pd.ci_config.")]
    if functions:
        raise _misfit(directory, f"other values of {', '.join(functions)}")
    checkpoints, template = Checkpoints(directory.checkpoints, writable=False), state_template(experiment).decomposition
    steps = checkpoints.steps()
    if block.parent_step is not None and block.parent_step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "it has none"
        raise RunError(f"{directory.path} has no finished checkpoint at step {block.parent_step}; {there}")

    def load(step: int) -> None:
        if differences := checkpoints.differences(step, template):
            raise _misfit(directory, "; ".join(differences[:3]))
        checkpoints.load_verified(step, template)

    step = block.parent_step
    if step is not None:
        if differences := checkpoints.differences(step, template):
            raise _misfit(directory, "; ".join(differences[:3]))
        checkpoints.load_decomposition(step, template)
    else:
        found = checkpoints.newest(load)
        if found is None:
            raise RunError(f"{directory.path} has no finished checkpoint yet; wait until it has saved one")
        for damaged, reason in found.skipped.items():
            say(f"checkpoint {damaged} of {directory.path} is damaged ({reason}); step {found.step} is begun from")
        step = found.step
    return Parent(directory, step, str(facts.get("run_id", directory.path.name)))


def _misfit(directory: RunDirectory, differences: str) -> RunError:
    return RunError(
        f"resume_provenance: {directory.path} does not fit this run ({differences}); "
        "write the same sites, C and ci_config as there"
    )


def inherited_state(experiment: Experiment, record: Mapping[str, object]) -> TrainState:
    """V, U and the CI function of a parent's checkpoint at step 0, with fresh optimizers and adversaries.

    Args:
        experiment: the run that begins.
        record: the parent as ``run.json`` keeps it.
    """
    state = _made_state(experiment)
    checkpoints = Checkpoints(RunDirectory(Path(str(record["path"]))).checkpoints, writable=False)
    step, template = int(str(record["step"])), state_template(experiment).decomposition
    if step not in checkpoints.steps():
        raise RunError(f"{record['path']} has checkpoint {step} no more, from which this run begins; put it back")
    return put_state(experiment, replace(state, decomposition=checkpoints.load_decomposition(step, template)))


def place(experiment: Experiment, placement: Placement | None) -> Experiment:
    """The same experiment on a mesh, its target where it belongs; of a text each process reads its rows."""
    if placement is None:
        return experiment
    target, batches = experiment.target, experiment.train_batch
    if isinstance(batches, HostBatches) and several():
        batches = replace(batches, own=placement.own_rows(experiment.config.pd.batch_size))
    target = put(target, placement.parameters("frozen", target))
    return replace(experiment, target=target, train_batch=batches, placement=placement)


def put_state(experiment: Experiment, state: TrainState) -> TrainState:
    """A state that every process holds whole, where it belongs."""
    if experiment.placement is None:
        return state
    return put(state, state_shardings(experiment.placement, experiment.problem, state))


def put_given(experiment: Experiment, given: Given) -> Given:
    """Batches ``[n, B, T]`` that were read on the host, or a process's rows of them, where the program takes them."""
    batches, placement = experiment.train_batch, experiment.placement
    if placement is None or given is None:
        return given
    if not isinstance(batches, HostBatches) or batches.own is None:
        return put(given, placement.split_batch(given.shape, axis=1))
    first, rows = batches.own[0], np.asarray(given)
    shape = (given.shape[0], experiment.config.pd.batch_size, *given.shape[2:])

    def part(index: tuple[slice, ...] | None) -> Int32[np.ndarray, "n b T"]:
        assert index is not None
        begin, end, _ = index[1].indices(shape[1])
        return rows[:, begin - first : end - first]

    return jax.make_array_from_callback(shape, placement.split_batch(shape, axis=1), part)


def first_state(experiment: Experiment, show: Show = "nothing") -> TrainState:
    """The state before step 0, after faithfulness warm-up, of which is shown how far it is."""
    pd, problem = experiment.config.pd, experiment.problem
    state = _made_state(experiment)
    if pd.faithfulness_warmup_steps == 0:
        return state
    batch = experiment.train_batch(jnp.asarray(pd.seed, jnp.uint32), jnp.asarray(0, jnp.int32))
    with warmup_meter(pd.faithfulness_warmup_steps, show) as made:
        warm = faithfulness_warmup(
            problem,
            experiment.target,
            state,
            batch,
            pd.faithfulness_warmup_steps,
            pd.faithfulness_warmup_lr,
            pd.faithfulness_warmup_weight_decay,
            made,
        )
    return warm if experiment.placement is None else jax.device_put(warm, jax.tree.map(lambda x: x.sharding, state))


def state_template(experiment: Experiment) -> TrainState:
    """Structure, shapes and types of the state; nothing is allocated."""
    return jax.eval_shape(partial(_fresh_state, experiment))


def _made_state(experiment: Experiment) -> TrainState:
    """As one program: what it makes on the way is freed, and every leaf has a buffer of its own, where it belongs."""
    where = None
    if experiment.placement is not None:
        where = state_shardings(experiment.placement, experiment.problem, state_template(experiment))
    return jax.jit(partial(_fresh_state, experiment), out_shardings=where)()


def _fresh_state(experiment: Experiment) -> TrainState:
    config, pd = experiment.config, experiment.config.pd
    weights = None
    if pd.initialization == "svd":
        batch = experiment.train_batch(jnp.asarray(pd.seed, jnp.uint32), jnp.asarray(0, jnp.int32))
        weights = jax.jit(partial(frozen_weights, sites=experiment.problem.sites))(experiment.target, batch)
    return init_state(experiment.problem, pd, config.tied_pairs, leading_of(config, experiment.target), weights)


def lower_program(experiment: Experiment) -> jax.stages.Lowered:
    """The one training program of a run, ``(target, state, n, seed, given)``: the state is donated."""
    batches, placement = experiment.train_batch, experiment.placement

    def run_steps(target: Target, state: TrainState, n: Array, seed: Array, given: Given) -> tuple[TrainState, Logs]:
        draw = in_program(batches, given, state.training.step)
        return steps_in_one_program(experiment.problem, target, state, n, seed, draw)

    template, shape = state_template(experiment), shape_given(batches)
    n, seed = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    given = None if shape is None else jax.ShapeDtypeStruct(shape, jnp.int32)
    if placement is None:
        program = jax.jit(run_steps, donate_argnums=1, compiler_options=compiler_options())
        return program.lower(experiment.target, template, n, seed, given)
    whole, state = placement.whole(), state_shardings(placement, experiment.problem, template)
    batch = None if given is None else placement.split_batch(given.shape, axis=1)
    where = placement.parameters("frozen", experiment.target), state, whole, whole, batch
    program = jax.jit(
        run_steps,
        donate_argnums=1,
        in_shardings=where,
        out_shardings=(state, whole),
        compiler_options=compiler_options(),
    )
    with jax.set_mesh(placement.mesh):
        return program.lower(experiment.target, template, n, seed, given)


def reopened_target(directory: RunDirectory, config: RunConfig, traced: TracedTarget | None = None) -> AnyTarget:
    """The target of a run: a toy is stored in its directory, a language model is loaded again, a traced one is given.

    Raises:
        RunError: weights that are not those the run was made with; a traced target that is missing or another one.
    """
    if traced is not None or isinstance(config.target, PythonTarget):
        return refuse_another_network(directory, config.target, traced)
    if not isinstance(config.target, LMTarget):
        return load_target(directory.target)
    target = load_language_model(config.target.spec, config.target.weights_dtype)[0]
    stored = directory.read_facts().get("target_weights")
    if stored != weights_fingerprint(target):
        raise RunError(
            f"the weights that target.spec of {directory.path} names are not those the run was made with; "
            "put the same weights back, or train it anew under another run_id"
        )
    return target
