"""Edits as they are written: on the command line, and in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, Strict, ValidationError

from vpd.analysis.editing.edits import Direction, Edit
from vpd.config.block import Block
from vpd.config.document import read_document
from vpd.config.problems import first_problem
from vpd.config.values import CountOrZero, Fraction, Text, Words
from vpd.errors import ConfigError, RunError

Number = Annotated[float, Field(allow_inf_nan=False), Strict(), Words("a finite number", 2.5)]
Vector = Annotated[tuple[Number, ...], Words("a list of numbers", [0.5, -1.0])]


class Entry(Block):
    """One edit of a file."""

    subcomponent: Annotated[Text, Field(examples=["h.0.mlp.c_fc:12"])]
    """SITE:INDEX."""
    factor: Number = 1.0
    """0 ablates, 2 doubles."""
    read: Text | Vector | None = None
    """Direction to read: SITE:INDEX, a .npy file, or numbers."""
    write: Text | Vector | None = None
    """Direction to write, likewise."""
    positions: tuple[CountOrZero, ...] | None = None
    """Where in the sequence; everywhere by default."""
    when_active: Fraction | None = None
    """Only where the causal importance is above this."""


class EditFile(Block):
    """A file of edits."""

    edits: Annotated[tuple[Entry, ...], Field(min_length=1), Words("a list of edits", [])]
    """One block for each subcomponent."""


def read_edits(path: Path) -> list[Edit]:
    """The edits of a YAML or JSON file.

    Raises:
        ConfigError: where it can't be read, or says something else.
    """
    document = read_document(path)
    try:
        found = EditFile.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error.errors(), document, EditFile)}") from None
    return [_edit(entry, path.parent) for entry in found.edits]


def _edit(entry: Entry, folder: Path) -> Edit:
    return Edit(
        entry.subcomponent,
        entry.factor,
        _direction(entry.read, folder),
        _direction(entry.write, folder),
        entry.positions,
        entry.when_active,
    )


def _direction(given: str | tuple[float, ...] | None, folder: Path) -> Direction | None:
    """Numbers, the name of a subcomponent, or what a .npy file beside the spec holds."""
    if given is None or isinstance(given, tuple):
        return given
    if not given.endswith(".npy"):
        return given
    path = folder / given
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} can't be read as an array of numbers ({type(error).__name__}); save one with numpy.save"
        ) from None


def parse_edits(
    ablate: Sequence[str], boost: Sequence[str], positions: str | None, when_active: float | None
) -> list[Edit]:
    """The edits of the command line.

    Args:
        ablate: ``SITE:INDEX,...``, each option.
        boost: ``SITE:INDEX=FACTOR,...``.
        positions: ``0,3,7``, of all of them.
        when_active: of all of them.

    Raises:
        RunError: factors that are no numbers, or positions that are not.
    """
    at = None if positions is None else _positions(positions)
    found = [Edit(name, 0.0, positions=at, when_active=when_active) for name in _words(ablate)]
    return found + [_boost(word, at, when_active) for word in _words(boost)]


def _words(given: Sequence[str]) -> list[str]:
    return [word.strip() for option in given for word in option.split(",") if word.strip()]


def _boost(word: str, at: tuple[int, ...] | None, when_active: float | None) -> Edit:
    name, equals, factor = word.partition("=")
    try:
        value = float(factor)
    except ValueError:
        value = float("nan")
    if not equals or not np.isfinite(value):
        raise RunError(f"--boost {word!r} gives no finite number; write SITE:INDEX=FACTOR, as in h.0.mlp.c_fc:12=2.5")
    return Edit(name, value, positions=at, when_active=when_active)


def _positions(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise RunError(f"--positions {text!r} are not counts from 0; write them as in 0,3,7")
    return tuple(int(word) for word in words)
