"""The records of a run as they lie in its directory, and the numbers in them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from vpd.errors import RunError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Record: TypeAlias = dict[str, Json]


class Records(NamedTuple):
    """The lines of `metrics.jsonl` by kind, in order of the step."""

    train: list[Record]
    eval: list[Record]


def read_records(run_dir: Path) -> Records:
    """Reads the training and evaluation records of a run.

    A last line that is cut short is left out: the run may be writing it. A resumed run repeats the steps
    after its checkpoint, and the later record of a step counts. Other kinds are left to their readers.

    Raises:
        RunError: without a run directory or `metrics.jsonl` in it, or when a line is no JSON object.
    """
    path = run_dir / "metrics.jsonl"
    if not run_dir.is_dir():
        raise RunError(f"There is no run directory {run_dir}: give the folder that `vpd train` printed.")
    if not path.is_file():
        raise RunError(
            f"{run_dir} has no metrics.jsonl, so it is no run or has not logged yet: give the folder that "
            "`vpd train` printed, or wait for its first log line."
        )
    by_kind: dict[str, dict[int, Record]] = {"train": {}, "eval": {}}
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None and line.strip() and number < len(lines):
            raise RunError(f"{path} line {number} is no JSON object: mend or delete that line.")
        kind, step = (record.get("kind"), record.get("step")) if record else (None, None)
        if record and isinstance(kind, str) and kind in by_kind and isinstance(step, int):
            by_kind[kind][step] = record
    train, evals = ([steps[s] for s in sorted(steps)] for steps in (by_kind["train"], by_kind["eval"]))
    return Records(train, evals)


def steps_of(records: Sequence[Record]) -> Float[np.ndarray, " _n"]:
    """The step of every record."""
    return np.array([number_of(record["step"]) for record in records])


def series_of(records: Sequence[Record], prefix: str) -> dict[str, Float[np.ndarray, " _n"]]:
    """One array a name after the prefix, NaN where a record lacks it."""
    names = dict.fromkeys(name for record in records for name in record if name.startswith(prefix))
    return {name.removeprefix(prefix): np.array([number_of(record.get(name)) for record in records]) for name in names}


def metrics_of(record: Record) -> Record:
    """The scalars of an evaluation; none of a record that has no such block."""
    metrics = record.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def number_of(value: Json) -> float:
    """A number, NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def words_of(value: Json) -> str:
    """A value as a report writes it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return f"{value:.4g}"
        case str():
            return value
        case list():
            return ", ".join(map(words_of, value))
        case dict():
            return ", ".join(f"{key} {words_of(item)}" for key, item in value.items())


def _parse(text: bytes) -> Record | None:
    """The JSON object in the text, or None where it is none."""
    try:
        value: Json = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_object(path: Path) -> Record:
    """A JSON file that may be missing, but not broken."""
    if not path.is_file():
        return {}
    value = _parse(path.read_bytes())
    if value is None:
        raise RunError(f"{path} is no JSON object: restore it, or delete it to do without.")
    return value
