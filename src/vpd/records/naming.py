"""How what ``metrics.jsonl`` and ``figures/`` hold is named in every other sink: one table, one function."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["train", "eval", "figure"]

# What stands before a key of metrics.jsonl, or before the name of a drawing.
PREFIXES: Mapping[Kind, str] = {"train": "train/", "eval": "eval/", "figure": "figures/"}
STEP = "step"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_./-]")


def name_in_sinks(kind: Kind, key: str) -> str:
    """The name of a key; characters that TensorBoard can't have in a name are underscores everywhere."""
    return PREFIXES[kind] + _NOT_IN_A_NAME.sub("_", key)


def named_scalars(kind: Kind, values: Mapping[str, float]) -> dict[str, float]:
    """The finite values under their names; the others are null in ``metrics.jsonl`` and left out elsewhere."""
    return {name_in_sinks(kind, key): float(value) for key, value in values.items() if math.isfinite(value)}


class Drawing(NamedTuple):
    """One drawing of an evaluation: its name in sinks, its file and its title."""

    name: str
    path: Path
    title: str


def drawings(folder: Path) -> Iterator[Drawing]:
    """The drawings in ``figures/<step>``, in the order in which they were made."""
    captions: Mapping[str, Mapping[str, str]] = json.loads((folder / "captions.json").read_bytes())
    for name, caption in captions.items():
        yield Drawing(name_in_sinks("figure", name), folder / f"{name}.png", caption.get("title", name))
