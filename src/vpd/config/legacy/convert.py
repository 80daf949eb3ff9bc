"""Converts a run file of an older vocabulary: old content in, a configuration or refusals out."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from vpd.config.document import parse_document
from vpd.config.legacy.draft import Draft, Row, and_above, dotted, leaves, place
from vpd.config.legacy.flat import MOVED, convert_flat
from vpd.config.legacy.flat_target import task_of
from vpd.config.legacy.knots import convert_knots
from vpd.config.legacy.recognise import Vocabulary, recognise
from vpd.config.pretraining import PretrainingConfig
from vpd.config.problems import first_problem
from vpd.config.reading import dump_run_file, read_run_file
from vpd.config.run import RunConfig
from vpd.config.support import check_supported
from vpd.config.targets import TARGET_NAMES
from vpd.errors import ConfigError

_PRETRAINING = {
    "num_iterations": "steps",
    "learning_rate": "optimizer.lr_schedule.start_val",
    "warmup_iters": "optimizer.lr_schedule.warmup_pct",
    "learning_rate_decay_frac": "optimizer.lr_schedule.final_val_frac",
    "weight_decay": "optimizer.weight_decay",
    "grad_clip": "optimizer.grad_clip_norm",
    "val_loss_every": "eval.every",
    "val_max_steps": "eval.n_steps",
    "batch_size": "batch_size",
    "sample_every": "samples.every",
    "dtype": "runtime.autocast_bf16",
    "model": "target",
    "data": "data",
}


@dataclass(frozen=True)
class Conversion:
    """What became of an older file.

    Attributes:
        vocabulary: the one it is in.
        config: the converted run; None where something is refused.
        rows: one for each field of the old file, in its order; then required fields that it lacks.
        added: what no old field says.
        notices: what a person should look at.
    """

    vocabulary: Vocabulary
    config: RunConfig | None
    rows: tuple[Row, ...]
    added: tuple[Row, ...]
    notices: tuple[str, ...]

    @property
    def refused(self) -> tuple[Row, ...]:
        """The rows that stand in the way."""
        return tuple(row for row in self.rows if row.kind == "refused")

    @property
    def text(self) -> str | None:
        """The new run file, without what is as by default."""
        return None if self.config is None else dump_run_file(self.config, defaults=False)


def convert_document(document: Mapping[str, object]) -> Conversion | None:
    """Convert a run file of an older vocabulary; None where it is in none of them.

    Every field of the old file has one row: taken, renamed, computed, dropped without effect, or refused. A file with
    refusals has no configuration.
    """
    known = recognise(document)
    if known is None:
        return None
    draft = Draft(known.vocabulary, document)
    if known.vocabulary == "older pretraining":
        _refuse_pretraining(draft)
        return Conversion(known.vocabulary, None, _rows(draft), (), ())
    (convert_flat if known.vocabulary == "flat" else convert_knots)(draft)
    missing, config = _validated(draft)
    if config is not None:
        _refuse_another_task(draft, config)
    if missing or any(row.kind == "refused" for row in draft.rows.values()):
        return Conversion(known.vocabulary, None, (*_rows(draft), *missing), tuple(draft.added), ())
    assert config is not None
    _reads_back(config)
    notices = (*draft.notices, *_not_built(config, draft.notices))
    return Conversion(known.vocabulary, config, _rows(draft), tuple(draft.added), notices)


def check_native(document: Mapping[str, object]) -> str:
    """What a file in today's vocabulary is: a run file or a pretraining file.

    Raises: ConfigError where it can't be read.
    """
    if "optimizer" not in document or "pd" in document:
        read_run_file(document, supported=False)
        return "run file"
    try:
        PretrainingConfig.model_validate(document)
    except ValidationError as error:
        message = first_problem(error.errors(), document, PretrainingConfig)
    else:
        return "pretraining file"
    raise ConfigError(message)


def _rows(draft: Draft) -> tuple[Row, ...]:
    paths = [path for path, _ in leaves(draft.given)]
    assert set(paths) == set(draft.rows), [dotted(path) for path in set(paths) ^ set(draft.rows)]
    return tuple(draft.rows[path] for path in paths)


def _validated(draft: Draft) -> tuple[list[Row], RunConfig | None]:
    """The configuration; or a refusal for each value that today's vocabulary does not take, by its old key."""
    document = draft.document()
    try:
        return [], RunConfig.model_validate(document)
    except ConfigError as error:
        messages = [str(error)]
    except ValidationError as error:
        problems = [p for p in error.errors() if p["type"] != "default_factory_not_called"]
        messages = [first_problem([problem], document, RunConfig) for problem in problems]
    holes = {row.new for row in draft.rows.values() if row.kind == "refused" and row.new is not None}
    around = {above for hole in holes for above in and_above(hole)}
    unplaced = any(row.kind == "refused" and row.new is None for row in draft.rows.values())
    missing: dict[str, Row] = {}
    for message in messages:
        key, _, says = message.partition(": ")
        says = says.removesuffix(".")
        if key in around or holes & set(and_above(key)) or draft.refuse_new(key, says):
            continue
        if not unplaced:
            missing.setdefault(key, Row("refused", None, key, _in_old_words(key, says)))
    return list(missing.values()), None


def _in_old_words(key: str, says: str) -> str:
    """What is missing in the new file is to be written in the old one."""
    older = next((old for old, new in MOVED.items() if new == key), None)
    return f"required and missing; write {older} in the old file" if older and says.startswith("required") else says


def _refuse_another_task(draft: Draft, config: RunConfig) -> None:
    """A flat file names its kind of target; here the target and the sites tell."""
    task = task_of(draft) if draft.vocabulary == "flat" else None
    if task is not None and task.kind != config.target_kind:
        path = place("task_config.task_name")
        says = f"the sites are those of a {TARGET_NAMES[config.target_kind]} target; make the two agree"
        draft.rows[path] = Row("refused", dotted(path), "target", says)


def _reads_back(config: RunConfig) -> None:
    text = dump_run_file(config, defaults=False)
    assert read_run_file(parse_document(text, "converted"), supported=False).config == config


def _not_built(config: RunConfig, said: list[str]) -> list[str]:
    try:
        check_supported(config)
    except ConfigError as error:
        key = str(error).partition(": ")[0]
        return (
            []
            if any(notice.startswith(f"{key} ") for notice in said)
            else [f"`vpd train` refuses the new file so far: {error}"]
        )
    return []


def _refuse_pretraining(draft: Draft) -> None:
    for name, value in draft.given.items():
        near = f"; its meaning is nearest to {_PRETRAINING[name]}" if name in _PRETRAINING else ""
        draft.refuse((name,), value, f"older pretraining files are not converted{near}")
