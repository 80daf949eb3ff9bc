"""Pretrains a language model in a run directory, or goes on with what was interrupted."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vpd.config import PretrainingConfig, changed_fields, dump_run_file, read_pretraining_file
from vpd.data.feed import HostBatches, Reader
from vpd.errors import NonFiniteError, RunError
from vpd.machine import common_facts, use_compile_cache
from vpd.pretrain.baselines import Baselines
from vpd.pretrain.checkpoint import PretrainCheckpoints
from vpd.pretrain.course import Course
from vpd.pretrain.model import abstract_model, fresh_model, parameter_count
from vpd.pretrain.plan import Plan, build_plan
from vpd.pretrain.report import KIND, write_pretraining_report
from vpd.pretrain.step import compiled_update, first_state
from vpd.progress import bar_unless, training_meter
from vpd.run_directory import (
    RunDirectory,
    create_run_directory,
    directory_name,
    refuse_unwritable,
    write_atomically,
)
from vpd.signals import StopSignals


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`pretrain` ended.

    Attributes:
        directory: where.
        finished: whether all updates were made.
        validation: cross-entropy on the evaluated rows in nats a token; None where nothing was evaluated.
        baselines: what counting has there.
    """

    directory: RunDirectory
    finished: bool
    validation: float | None = None
    baselines: Baselines | None = None


def run_path(config: PretrainingConfig, name: str | None) -> Path:
    """The run directory that a pretraining file means; its name is chosen as that of a run file."""
    folder = Path(config.out_dir or "runs").expanduser()
    return folder / (config.run_id or directory_name(config.run_name or name, "pretrain", dump_run_file(config)))


def pretrain(
    config: PretrainingConfig,
    name: str | None = None,
    quiet: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    patience: float | None = None,
) -> Outcome:
    """Train a language model, or go on with one that was interrupted; a finished one is left as it is.

    Args:
        config: read.
        name: of the file, for the directory's name.
        quiet: no progress bar.
        notify: told in one sentence what is about to happen.
        patience: seconds after which a signal ends the process while there is nothing to save; None where the process
            is not the run's own.

    Raises:
        VpdError: text or tokenizer that can't be used; a directory that can't be written or holds another run.
        NonFiniteError: a loss that is not finite.
        Stopped: a signal came before there was anything to save.
    """
    with StopSignals(patience) as signals:
        use_compile_cache(config.runtime.compilation_cache_dir)
        path = run_path(config, name)
        config = config.model_copy(update={"run_id": path.name, "out_dir": str(path.parent)})
        directory, is_new = RunDirectory(path), not path.exists()
        if is_new:
            refuse_unwritable(path)
        else:
            _refuse_another_run(directory, config)
        plan = build_plan(config, quiet)
        if is_new:
            directory = create_run_directory(path, dump_run_file(config), _facts(plan, path.name), None)
        else:
            _refuse_other_text(directory, plan)
        with directory.locked():
            if directory.read_facts().get("status") == "finished":
                notify(f"{path} is finished already; give it another run_id to train it again")
                return _finished(directory)
            directory.sweep()
            write_atomically(directory.config, dump_run_file(config))
            return _train(plan, directory, quiet, notify, signals)


def _train(
    plan: Plan, directory: RunDirectory, quiet: bool, notify: Callable[[str], None], signals: StopSignals
) -> Outcome:
    config = plan.config
    began, seconds_before = time.monotonic(), float(str(directory.read_facts().get("seconds", 0.0)))
    counted = plan.baselines()
    directory.update_facts(status="running", baselines=None if counted is None else asdict(counted))
    if counted is not None:
        notify(
            f"to beat on the {config.data.eval_split} rows: bigram {counted.bigram:.3f}, unigram "
            f"{counted.unigram:.3f} nats a token"
        )
    abstract = abstract_model(config, plan.vocab)
    program = compiled_update(plan.rule, abstract, (config.batch_size, config.data.max_seq_len))
    checkpoints = PretrainCheckpoints(directory.checkpoints, config.cadence.keep_last_n_checkpoints, plan.extra)
    checkpoints.sweep()
    saved = checkpoints.steps()
    state = checkpoints.load(saved[-1], abstract) if saved else first_state(fresh_model(config, plan.vocab))
    start = int(state.step)
    directory.keep_records(lambda record: isinstance(step := record.get("step"), int) and step < start)
    if saved:
        notify(f"going on with {directory.path} from step {start}")
    with (
        training_meter(config.steps, start, bar_unless(quiet), "pretraining") as meter,
        signals.deferred() as stopped,
        Reader(HostBatches(plan.rows), start) as reader,
    ):
        course = Course(plan, directory, checkpoints, program, meter)
        try:
            state, finished = course.run(state, reader, stopped)
        except NonFiniteError:
            _close(directory, "failed", seconds_before + time.monotonic() - began, course.validation)
            raise
        if not finished:
            checkpoints.save(state)
        status = "finished" if finished else "stopped"
        _close(directory, status, seconds_before + time.monotonic() - began, course.validation)
    return Outcome(directory, finished, course.validation, counted)


def _close(directory: RunDirectory, status: str, seconds: float, validation: float | None) -> None:
    """Say how the run ended, and report what it has recorded."""
    directory.update_facts(status=status, seconds=round(seconds, 1), validation=validation)
    if directory.metrics.exists():
        write_pretraining_report(directory.path)


def _finished(directory: RunDirectory) -> Outcome:
    """What a finished run has recorded."""
    facts = directory.read_facts()
    if not (directory.path / "report.html").exists() and directory.metrics.exists():
        write_pretraining_report(directory.path)
    counted, validation = facts.get("baselines"), facts.get("validation")
    known = Baselines(**counted) if isinstance(counted, dict) else None
    return Outcome(directory, True, validation if isinstance(validation, float) else None, known)


def _facts(plan: Plan, run_id: str) -> Mapping[str, object]:
    config, train = plan.config, plan.data_set.splits[plan.config.data.train_split]
    return {
        "kind": KIND,
        **common_facts(run_id, config.seed),
        "target": config.target.model_class,
        "parameters": parameter_count(abstract_model(config, plan.vocab)),
        "vocab_size": plan.vocab,
        "text": {
            "source": plan.data_set.source,
            "tokenizer": plan.data_set.tokenizer.name,
            "train_tokens": train.tokens,
            "fingerprint": plan.data_set.fingerprint,
        },
    }


def _refuse_another_run(directory: RunDirectory, config: PretrainingConfig) -> None:
    if directory.read_facts().get("kind") != KIND:
        raise RunError(f"{directory.path} holds a decomposition; give this run another run_id or out_dir")
    changes = changed_fields(read_pretraining_file(directory.config).config, config)
    if changes.trajectory:
        raise RunError(
            f"{directory.path} holds a run with other values of {', '.join(changes.trajectory)}; "
            "give this one another run_id or out_dir"
        )


def _refuse_other_text(directory: RunDirectory, plan: Plan) -> None:
    text = directory.read_facts().get("text")
    stored = text.get("fingerprint") if isinstance(text, dict) else None
    if stored != plan.data_set.fingerprint:
        raise RunError(
            f"the text that data.dataset_name of {directory.path} names is not the one the run was made with; "
            "put the same text back, or train anew under another run_id"
        )
