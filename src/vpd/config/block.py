"""What every block of a run file shares: strict keys, immutability, and how a refusal is phrased."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from vpd.config.values import is_block
from vpd.errors import ConfigError

_SHOWN = 60


class Block(BaseModel):
    """A block of keys: unknown keys are refused, instances are frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    inactive_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of sibling blocks that stored files carry as null."""

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, given: object) -> object:
        if not is_block(given):
            return given
        return {key: value for key, value in given.items() if value is not None or not cls._optional(key)}

    @classmethod
    def _optional(cls, key: str) -> bool:
        if key in cls.inactive_keys:
            return True
        field = cls.model_fields.get(key)
        return field is not None and not field.is_required()


def show(value: object) -> str:
    """A value as an error message quotes it: one short printable line."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    if not text.isprintable():
        text = json.dumps(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def plain(name: object) -> str:
    """A key or name as it stands, quoted only where it is not an ordinary word."""
    text = str(name)
    is_word = text.isprintable() and 0 < len(text) <= _SHOWN and not any(c in text for c in " :;,\"'")
    return text if is_word else show(text)


def sentence(key: str, said: str, way_out: str) -> str:
    """The one shape of every refusal: dotted key, what is wrong, what to write instead."""
    return f"{key}: {said}; {way_out}." if key else f"{said}; {way_out}."


def refusal(key: str, said: str, way_out: str) -> ConfigError:
    """A refusal whose full dotted key is known."""
    return ConfigError(sentence(key, said, way_out))


def problem(key: str, said: str, way_out: str) -> PydanticCustomError:
    """A refusal inside a block, which knows only its own `key`; the reader puts the path before it."""
    context = {"key": key, "said": said, "way_out": way_out}
    return PydanticCustomError("vpd", "{key}: {said}; {way_out}", context)


def listed(names: Iterable[object], limit: int = 24) -> str:
    """Names in one line, cut where there are too many to read."""
    shown = [plain(name) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def nearest(word: object, choices: Iterable[str]) -> str | None:
    """The closest valid spelling, if one is close."""
    if not isinstance(word, str):
        return None
    options = list(choices)
    close = get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return close[0]
    folded = {option.lower(): option for option in options}
    close = get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def choose(word: object, choices: Iterable[str]) -> str:
    """The way out for a name that is not one of the choices."""
    options = list(choices)
    close = nearest(word, options)
    return f"nearest valid spelling: {close}" if close else f"write one of {listed(options)}"
