"""A run: its directory, the loop with its evaluations and checkpoints, records, figures and report."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from vpd.config import Changes, changed_fields, dump_run_file, read_run_file, values_of
from vpd.config.run import RunConfig
from vpd.config.targets import LMTarget
from vpd.data.build import Sampler
from vpd.data.feed import HostBatches, Reader
from vpd.errors import NonFiniteError, RunError
from vpd.evaluation.report import write_report
from vpd.evaluation.suite import Evaluation
from vpd.experiment import (
    AnyTarget,
    Experiment,
    build,
    find_parent,
    first_state,
    inherited_state,
    lower_program,
    place,
    put_given,
    put_state,
    reopened_target,
    state_template,
)
from vpd.hosts import first_does, first_says, in_any, is_first, lost_peers
from vpd.machine import common_facts, return_freed_memory, spared_seconds, use_compile_cache
from vpd.nonfinite import Compiled, leave_dump
from vpd.objective.total import persistent_terms
from vpd.progress import Show, busy, say, training_meter
from vpd.recorder import Recorder
from vpd.records import open_records
from vpd.run_directory import (
    RunDirectory,
    create_run_directory,
    directory_name,
    refuse_unwritable,
)
from vpd.signals import StopSignals
from vpd.targets import LanguageModel
from vpd.targets.checkpoint import source_facts
from vpd.targets.fingerprint import weights_fingerprint
from vpd.targets.traced import TracedTarget
from vpd.targets.weights import Toy, target_bytes
from vpd.training.checkpoint import Checkpoints, hush_late_writes
from vpd.training.loop import Callbacks, Events, train
from vpd.training.placed import placement_from
from vpd.training.state import TrainState


def run_id_of(config: RunConfig, name: str | None) -> str:
    """The run directory's name: ``run_id``, else ``run_name``, else the run file's stem, else a hash of the content."""
    return config.run_id or directory_name(config.run_name or name, config.target_kind, dump_run_file(config))


def run_path(config: RunConfig, name: str | None) -> Path:
    """The run directory that a run file means."""
    return Path(config.out_dir or "runs").expanduser() / run_id_of(config, name)


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`run` ended: where, whether all steps were made, and the last evaluation."""

    directory: RunDirectory
    finished: bool
    evaluation: Evaluation | None


def run(
    config: RunConfig,
    name: str | None = None,
    quiet: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    target: TracedTarget | None = None,
    data: Sampler | None = None,
    override: bool = False,
    patience: float | None = None,
    as_json: bool = False,
) -> Outcome:
    """Train a decomposition, or go on with one that was interrupted; a finished one is left as it is.

    Args:
        config: read and supported.
        name: of the run file, for the directory's name.
        quiet: no progress bar.
        notify: told in one sentence what is about to happen.
        target: a traced network, where the run file pins one.
        data: where its batches come from.
        override: go on with a run that has begun with other values, where that is possible.
        patience: seconds after which a signal ends the process while there is nothing to save; None where the process
            is not the run's own.
        as_json: progress as JSON objects on standard output, in place of a bar.

    Raises:
        RunError: a directory that can't be written or holds another run.
        NonFiniteError: a loss, gradient or state that is not finite.
        Stopped: a signal came before there was anything to save.
    """
    if patience is not None:
        hush_late_writes()
    with StopSignals(patience) as signals, lost_peers():
        show: Show = "json" if as_json else "nothing" if quiet else "bar"
        return _run(config, name, show, notify, signals, target, data, override)


def _run(
    config: RunConfig,
    name: str | None,
    show: Show,
    notify: Callable[[str], None],
    signals: StopSignals,
    traced: TracedTarget | None,
    data: Sampler | None,
    override: bool,
) -> Outcome:
    use_compile_cache(config.runtime.compilation_cache_dir)
    if not is_first():
        show, notify = "nothing", _say_nothing
    placement = placement_from(config.runtime, config.pd.batch_size, notify)
    path = run_path(config, name)
    config = config.model_copy(update={"run_id": path.name, "out_dir": str(path.parent)})
    directory, changes = RunDirectory(path, is_first()), Changes((), ())
    if first_says(path.exists()):
        changes = refuse_another_run(directory, config, override)
        experiment = build(config, reopened_target(directory, config, traced), data=data)
    else:
        refuse_unwritable(path)
        experiment = build(config, traced, quiet=show != "bar", data=data)
        facts = _facts(experiment, path.name, traced or experiment.target)
        stored = target_bytes(experiment.target) if isinstance(experiment.target, Toy) else None
        first_does(lambda: create_run_directory(path, dump_run_file(config), facts, stored))
    with directory.locked() as check_place:
        if directory.read_facts().get("status") == "finished" and not changes.trajectory:
            notify(f"{path} is finished already; give it another run_id to train it again")
            if is_first() and not (path / "report.html").exists():
                write_report(path)
            return Outcome(directory, True, None)
        directory.sweep()
        # A record that can't be read is told before anything is compiled.
        directory.keep_records(lambda _: True)
        if changes.trajectory:
            first_does(lambda: _override(directory, experiment, changes))
        # What may change without another trajectory, such as a cadence, is pinned as it is now.
        first_does(lambda: directory.pin(dump_run_file(config)))
        with (
            Checkpoints(directory.checkpoints, config.cadence.keep_last_n_checkpoints) as checkpoints,
            nullcontext() if placement is None else jax.set_mesh(placement.mesh),
        ):
            return _train(checkpoints, place(experiment, placement), directory, show, notify, signals, check_place)


def _say_nothing(_: str) -> None:
    """The first process of a run speaks for all."""


def refuse_another_run(directory: RunDirectory, config: RunConfig, override: bool = False) -> Changes:
    """Make sure that a run directory holds the run that a configuration means, or with ``override`` can go on as it.

    Returns:
        What differs; nothing that changes the trajectory without ``override``.

    Raises:
        RunError: no run directory, or another run.
    """
    if directory.read_facts().get("kind") == "pretraining":
        raise RunError(f"{directory.path} holds a pretraining run; give this one another run_id or out_dir")
    stored = read_run_file(directory.config).config
    changes = changed_fields(stored, config)
    if override and changes.fixed:
        raise RunError(
            f"{directory.path} can't go on with other values of {', '.join(changes.fixed)}; "
            "give this one another run_id or out_dir"
        )
    if changes.trajectory and not override:
        raise RunError(
            f"{directory.path} holds a run with other values of {', '.join(changes.trajectory)}; "
            "give this one another run_id or out_dir, or go on with them by --override-config"
        )
    return changes


def _override(directory: RunDirectory, experiment: Experiment, changes: Changes) -> None:
    """Record that a run goes on with other values, before it does.

    Raises:
        RunError: the state that was saved is not one they could go on from.
    """
    checkpoints = Checkpoints(directory.checkpoints, writable=False)
    template = state_template(experiment)

    def differences_of(step: int) -> list[str]:
        checkpoints.verify(step)
        return checkpoints.differences(step, template)

    found = checkpoints.newest(differences_of)
    step, differences = (0, []) if found is None else (found.step, found.value)
    fields = ", ".join(changes.trajectory)
    if differences:
        raise RunError(
            f"{directory.path} can't go on with other values of {fields} ({'; '.join(differences[:3])}); "
            "give this one another run_id or out_dir"
        )
    if experiment.config.pd.steps <= step:
        raise RunError(
            f"{directory.path} is at step {step} already, and pd.steps is {experiment.config.pd.steps}; "
            f"write more to go on with other values of {fields}"
        )
    stored = read_run_file(directory.config).config
    old, new = values_of(stored, changes.trajectory), values_of(experiment.config, changes.trajectory)
    record: dict[str, object] = {
        "step": step,
        "fields": {key: {"old": old[key], "new": new[key]} for key in changes.trajectory},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    before = directory.read_facts().get("overrides")
    directory.update_facts(overrides=[*(before if isinstance(before, list) else []), record])


def _facts(experiment: Experiment, run_id: str, target: AnyTarget) -> Mapping[str, object]:
    config, parent = experiment.config, find_parent(experiment)
    facts: dict[str, object] = common_facts(run_id, config.pd.seed) | {"target": config.target_kind}
    if parent is not None:
        facts["parent"] = parent.as_record()
    if isinstance(target, TracedTarget):
        facts["fingerprint"] = target.fingerprint()
    if isinstance(target, LanguageModel) and isinstance(config.target, LMTarget):
        came = source_facts(config.target.spec)
        facts["target_weights"] = weights_fingerprint(target)
        facts["target_source"] = {"source": came.source, "format": came.format, "quantised": came.quantised}
    return facts


def _last_good(checkpoints: Checkpoints, experiment: Experiment, directory: RunDirectory) -> TrainState | None:
    """The state to go on from; newer checkpoints that are damaged are set aside, each with a sentence."""
    template = state_template(experiment)
    found = checkpoints.newest(lambda step: checkpoints.load_state(step, template))
    if found is None:
        return None
    for step, reason in found.skipped.items():
        aside = checkpoints.set_aside(step)
        say(
            f"checkpoint {step} of {directory.path} is damaged ({reason}); "
            f"it is left aside as {aside.name}, and training goes on from step {found.step}"
        )
    return found.value


def _beginning(experiment: Experiment, directory: RunDirectory, show: Show = "nothing") -> TrainState:
    parent = directory.read_facts().get("parent")
    return inherited_state(experiment, parent) if isinstance(parent, dict) else first_state(experiment, show)


def _train(
    checkpoints: Checkpoints,
    experiment: Experiment,
    directory: RunDirectory,
    show: Show,
    notify: Callable[[str], None],
    signals: StopSignals,
    check_place: Callable[[], None],
) -> Outcome:
    clock = _Clock(directory)
    with spared_seconds() as spared, busy("compiling the training program", show):
        program = lower_program(experiment).compile()
    if spared and show == "bar":
        notify(f"the training program was compiled before, which spares {sum(spared):.1f} s")
    if not spared:
        return_freed_memory()
    found = _last_good(checkpoints, experiment, directory)
    state = _beginning(experiment, directory, show) if found is None else put_state(experiment, found)
    return_freed_memory()
    if found is not None:
        notify(f"going on with {directory.path} from step {int(state.training.step)}")
    try:
        return _steps(program, state, checkpoints, experiment, directory, show, signals, clock, check_place)
    except NonFiniteError as error:
        failed = error.with_traceback(None)  # its frames hold the state
    _close(directory, "failed", clock.seconds())

    def last_good() -> TrainState:
        checkpoints.wait()
        template = state_template(experiment)
        found = checkpoints.newest(lambda step: checkpoints.load_state(step, template))
        return _beginning(experiment, directory) if found is None else put_state(experiment, found.value)

    with signals.deferred() as asked:
        raise leave_dump(failed, experiment, directory, program, last_good, in_any(asked), notify)


def _steps(
    program: Compiled,
    state: TrainState,
    checkpoints: Checkpoints,
    experiment: Experiment,
    directory: RunDirectory,
    show: Show,
    signals: StopSignals,
    clock: "_Clock",
    check_place: Callable[[], None],
) -> Outcome:
    """The steps that are left, and how the run ended."""
    config, pd, start = experiment.config, experiment.config.pd, int(state.training.step)
    directory.keep_records(partial(_precedes, start))
    directory.drop_figures_after(start)
    directory.update_facts(status="running", mesh=_mesh_facts(experiment))
    seed, batches = jnp.asarray(pd.seed, jnp.uint32), experiment.train_batch
    with (
        training_meter(pd.steps, start, show) as meter,
        signals.deferred() as asked,
        Reader(batches, start) as reader,
        Recorder(experiment, directory, open_records(config, directory, start), in_any(asked)) as recorder,
    ):
        stopped = in_any(asked)

        def progress(step: int, logs: Mapping[str, float]) -> None:
            check_place()
            checkpoints.check()
            meter(step, recorder.watched(logs))

        def log(step: int, logs: Mapping[str, float]) -> None:
            check_place()
            recorder.log(step, logs)

        def save(state: TrainState) -> None:
            check_place()
            checkpoints.save(state)

        def evaluate(state: TrainState) -> bool:
            with meter.doing("evaluating"):
                return recorder.evaluate(state)

        callbacks = Callbacks(log=log, save=save, evaluate=evaluate, progress=progress, stopped=stopped)
        try:
            state, finished = train(
                lambda state, n: program(experiment.target, state, n, seed, put_given(experiment, reader.take(int(n)))),
                state,
                events_of(config),
                callbacks,
                batches.per_dispatch if isinstance(batches, HostBatches) else config.runtime.steps_per_dispatch,
                {name: spec.first_step for name, (_, spec) in persistent_terms(experiment.problem.terms).items()},
            )
            if not finished:
                save(state)
            with meter.doing("saving"):
                checkpoints.wait()
            with meter.doing("drawing figures"):
                recorder.settle(finished)
        except (RunError, OSError):
            with suppress(OSError, RunError):  # a disk that is full or gone refuses this too
                directory.update_facts(status="failed")
            raise
        _close(directory, "finished" if finished else "stopped", clock.seconds())
    return Outcome(directory, finished, recorder.last)


def _mesh_facts(experiment: Experiment) -> dict[str, object] | None:
    """What ``run.json`` says of the devices that a run is spread over; None on a single one."""
    placement = experiment.placement
    return None if placement is None else {**placement.mesh.shape, "placement": placement.preset}


class _Clock:
    """Seconds that a run has been trained for, over all its starts."""

    def __init__(self, directory: RunDirectory) -> None:
        before = directory.read_facts().get("seconds", 0.0)
        self._before, self._began = float(str(before)), time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def _close(directory: RunDirectory, status: str, seconds: float) -> None:
    """Say how the run ended, and report what it has recorded."""
    directory.update_facts(status=status, seconds=round(seconds, 1))
    if directory.writes and directory.metrics.exists():
        write_report(directory.path)


def _precedes(start: int, record: Mapping[str, object]) -> bool:
    """Whether a record was written before the state at ``start`` was; what follows is computed again."""
    step = record.get("step")
    return isinstance(step, int) and step < start


def events_of(config: RunConfig) -> Events:
    """When a run records, saves and evaluates."""
    cadence, dense = config.cadence, config.cadence.dense_log_phase
    return Events(
        steps=config.pd.steps,
        log_every=cadence.train_log_every,
        dense_every=dense.every if dense else None,
        dense_until=dense.until_step if dense else 0,
        save_every=cadence.save_every,
        eval_every=config.eval.every if config.eval else None,
    )
