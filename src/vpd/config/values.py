"""The kinds of value a run file may hold, each with the words an error message uses for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeGuard

from pydantic import BeforeValidator, Field, Strict

MAX_INTEGER = 2**31 - 1
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, eq=False)
class Words:
    """How an error message describes a kind of value, and an example of it."""

    expected: str
    example: object


def is_block(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether a value is a block of keys."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """Whether a value is a list."""
    return isinstance(value, list | tuple)


def _number_from_text(value: object) -> object:
    # A YAML 1.1 writer leaves 3e-3 as text, and stored files have it.
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


_FLOAT = (Strict(), BeforeValidator(_number_from_text))

Flag = Annotated[bool, Strict(), Words("true or false", True)]
Count = Annotated[int, Strict(), Field(ge=1, le=MAX_INTEGER), Words("an integer >= 1", 100)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=MAX_INTEGER), Words("an integer >= 0", 0)]
MeshSize = Annotated[
    int, Strict(), Field(ge=-1, le=MAX_INTEGER), Words("an integer >= 1, or -1 for all that is left", 1)
]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1), Words("an integer from 0 to 4294967295", 0)]
Positive = Annotated[float, *_FLOAT, Field(gt=0, allow_inf_nan=False), Words("a finite number > 0", 0.001)]
NonNegative = Annotated[float, *_FLOAT, Field(ge=0, allow_inf_nan=False), Words("a finite number >= 0", 0.001)]
Fraction = Annotated[float, *_FLOAT, Field(ge=0, le=1, allow_inf_nan=False), Words("a number in [0, 1]", 0.5)]
HalfOpenFraction = Annotated[float, *_FLOAT, Field(ge=0, lt=1, allow_inf_nan=False), Words("a number in [0, 1)", 0.5)]
Text = Annotated[str, Strict(), Field(min_length=1, max_length=4096), Words("a non-empty text", "some-name")]
Identifier = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*$", max_length=128),
    Words("a name of letters, digits and any of _.+=- that starts with a letter or digit", "first"),
]
Glob = Annotated[str, Strict(), Field(min_length=1, max_length=1024), Words("a site name or glob", "linear1")]
