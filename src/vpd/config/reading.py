"""Reads a run file into a configuration, or says in one sentence why it can't be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vpd.config.block import Block, listed, refusal
from vpd.config.document import plain_block, read_document, write_document
from vpd.config.legacy.recognise import recognise
from vpd.config.losses import FreshAdversary
from vpd.config.pretraining import FreshGPT2, PretrainingConfig
from vpd.config.problems import first_problem
from vpd.config.run import RunConfig
from vpd.config.support import check_supported
from vpd.config.values import is_block, is_list
from vpd.errors import ConfigError

Parsed = TypeVar("Parsed", bound=Block)
_CONVERT = "write the current one with `vpd config convert FILE -o NEW.yaml`"
_OLDER = {
    "flat": ("this file is in the flat vocabulary of before May 2026", _CONVERT),
    "knots": ("this file is in the knots vocabulary of July 2026 and later", _CONVERT),
    "older pretraining": (
        "this is an older pretraining file, which is not read or converted",
        "write a pretraining file with target, data, optimizer, steps, batch_size and cadence for `vpd pretrain`",
    ),
}


@dataclass(frozen=True)
class RunFile:
    """A run file that was read.

    Attributes:
        config: what it says.
        notices: sentences for the console about keys that don't act as written.
        name: stem of the file, null where it was not a file.
    """

    config: RunConfig
    notices: tuple[str, ...]
    name: str | None


@dataclass(frozen=True)
class PretrainingFile:
    """A pretraining file that was read; attributes as of :class:`RunFile`."""

    config: PretrainingConfig
    notices: tuple[str, ...]
    name: str | None


def read_run_file(source: str | Path | Mapping[str, object], *, supported: bool = True) -> RunFile:
    """Read a run file, or the same content as nested mappings.

    Args:
        source: path of a YAML file, or its content.
        supported: also refuse what the vocabulary has and this version does not build.

    Raises: ConfigError, one sentence with the dotted key, the reason and the way out.
    """
    document, name = _content(source)
    if is_pretraining(document):
        said = "this is a pretraining file, which trains a network and takes none apart"
        raise refusal("optimizer", said, "run it with `vpd pretrain`, or give a run file with pd")
    config = _parse(RunConfig, document)
    if supported:
        check_supported(config)
    return RunFile(config, _notices(document, config), name)


def read_pretraining_file(source: str | Path | Mapping[str, object]) -> PretrainingFile:
    """Read a pretraining file, or the same content as nested mappings.

    Raises: ConfigError, one sentence with the dotted key, the reason and the way out.
    """
    document, name = _content(source)
    if "pd" in document:
        said = "this is a run file, which takes a trained network apart"
        raise refusal("pd", said, "run it with `vpd train`, or give a pretraining file with optimizer and no pd")
    config = _parse(PretrainingConfig, document)
    return PretrainingFile(config, _pretraining_notices(config), name)


def read_file(source: str | Path | Mapping[str, object]) -> RunFile | PretrainingFile:
    """Read whichever of the two a file is; it has to be supported.

    Raises: ConfigError, as :func:`read_run_file` and :func:`read_pretraining_file` do.
    """
    return read_pretraining_file(source) if is_pretraining(_content(source)[0]) else read_run_file(source)


def is_pretraining(document: Mapping[str, object]) -> bool:
    """Whether the top-level keys are those of a pretraining file."""
    target = document.get("target")
    is_fresh = is_block(target) and "model_class" in target
    return "pd" not in document and ("optimizer" in document or is_fresh)


def _content(source: str | Path | Mapping[str, object]) -> tuple[dict[str, object], str | None]:
    """The top-level block in today's vocabulary, and the stem of the file."""
    if isinstance(source, str | Path):
        path = Path(source)
        document, name = read_document(path), path.stem
    else:
        document, name = plain_block(source), None
    _refuse_other_vocabularies(document)
    return document, name


def dump_run_file(config: RunConfig | PretrainingConfig, *, defaults: bool = True) -> str:
    """The configuration as YAML; reading it gives an equal configuration.

    Args:
        config: what to write.
        defaults: also write what was not given, which makes the file a full record.
    """
    document = _type_first(config.model_dump(mode="json", exclude_unset=not defaults))
    assert is_block(document)
    return write_document(document)


def _parse(model: type[Parsed], document: Mapping[str, object]) -> Parsed:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        message = first_problem(error.errors(), document, model)
    raise ConfigError(message)


def _refuse_other_vocabularies(document: Mapping[str, object]) -> None:
    older = recognise(document)
    if older is not None:
        raise refusal(older.key, *_OLDER[older.vocabulary])


def _notices(document: Mapping[str, object], config: RunConfig) -> tuple[str, ...]:
    notices: list[str] = []
    with_coeff = [f"eval.metrics[{i}].coeff" for i in _metrics_with_coeff(document)]
    if with_coeff:
        verb = "is" if len(with_coeff) == 1 else "are"
        notices.append(f"{listed(with_coeff)} {verb} ignored: a metric has no weight.")
    notices += _device_notice(config.runtime.device)
    for i, term in enumerate(config.pd.loss_metrics):
        if isinstance(term, FreshAdversary) and term.init == "ones" and config.pd.use_delta_component:
            notices.append(
                f"pd.loss_metrics[{i}].init: ones starts the adversary at the target itself, where its first "
                "gradient is rounding noise; random is the usual start."
            )
    return tuple(notices)


def _device_notice(device: str | None) -> list[str]:
    if device is None:
        return []
    return [f"runtime.device: {device} is a wish: the run uses the devices that are there, and its record says which."]


def _pretraining_notices(config: PretrainingConfig) -> tuple[str, ...]:
    notices = _device_notice(config.runtime.device)
    trained = config.data.max_seq_len - 1
    if isinstance(config.target, FreshGPT2) and config.block_size > trained:
        notices.append(
            f"target.block_size: of {config.block_size} learned positions only the first {trained} are trained, since "
            f"rows have {trained + 1} tokens."
        )
    return tuple(notices)


def _metrics_with_coeff(document: Mapping[str, object]) -> list[int]:
    block = document.get("eval")
    metrics = block.get("metrics") if is_block(block) else None
    if not is_list(metrics):
        return []
    return [i for i, entry in enumerate(metrics) if is_block(entry) and entry.get("coeff") is not None]


def _type_first(value: object) -> object:
    """The same value with the key that selects a block written before its other keys."""
    if is_block(value):
        first = [key for key in ("type", "mode", "fn_type", "kind", "model_class") if key in value]
        return {key: _type_first(value[key]) for key in dict.fromkeys([*first, *value])}
    return [_type_first(item) for item in value] if is_list(value) else value
