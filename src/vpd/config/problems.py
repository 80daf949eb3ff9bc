"""Turns what pydantic reports into one sentence about the first thing to mend."""

from collections.abc import Sequence
from typing import TypedDict

from pydantic_core import ErrorDetails

from vpd.config.block import Block, choose, listed, nearest, plain, sentence, show
from vpd.config.metrics import LOSS_TYPES, METRIC_TYPES
from vpd.config.values import MAX_INTEGER, is_block, is_list
from vpd.config.vocabulary import (
    Place,
    choices_in,
    elsewhere,
    flow,
    locate,
    required_keys,
    tags_of,
    words_of,
)

_HINTS = {
    "target": "write n_features, n_hidden and pretrain (TMS), d_embed, d_mlp and n_layers (ResidMLP), "
    "spec (language model), kind: induction, or run_path; a traced target is given in Python",
    "data": "write feature_probability (toys), or dataset_name and tokenizer_name (language models)",
}
_TRUE, _FALSE = ("yes", "on", "true", "1", "y"), ("no", "off", "false", "0", "n")


class _Context(TypedDict, total=False):
    key: str
    said: str
    way_out: str
    discriminator: str
    le: float


def first_problem(errors: Sequence[ErrorDetails], document: object, root: type[Block]) -> str:
    """The most relevant of pydantic's errors as one sentence."""
    worst = min(enumerate(errors), key=lambda item: (_rank(item[1], errors, document, root), item[0]))[1]
    return _describe(worst, locate(worst["loc"], document, root), root)


def _rank(error: ErrorDetails, errors: Sequence[ErrorDetails], document: object, root: type[Block]) -> int:
    """A misspelt key comes before the key that is missing for it, and items before the list they spoil."""
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return 0
    if kind in ("too_short", "default_factory_not_called") and any(
        other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in errors
    ):
        return 9
    if kind == "default_factory_not_called":
        return 8
    return 2 if kind == "missing" else 1


def _describe(error: ErrorDetails, place: Place, root: type[Block]) -> str:
    context: _Context = error.get("ctx", {})  # pyright: ignore[reportAssignmentType] (a plain dict by contract)
    kind = error["type"]
    if kind == "vpd":
        key = f"{place.key}.{context.get('key')}" if place.key else context.get("key", "")
        return sentence(key, context.get("said", ""), context.get("way_out", ""))
    if kind == "missing":
        return sentence(place.key, "required and missing", _write(place))
    if kind == "extra_forbidden":
        return _unknown_key(error, place, root)
    if kind == "union_tag_invalid":
        return _unknown_tag(place, context.get("discriminator", "type").strip("'"))
    if kind == "union_tag_not_found" and is_block(place.value):
        return _missing_tag(place, context.get("discriminator", "type").strip("'"))
    if kind in ("model_type", "model_attributes_type", "union_tag_not_found", "dataclass_type"):
        return sentence(place.key, f"expected a block of keys, got {show(error['input'])}", _write(place))
    return _wrong_value(error, place, context)


def _unknown_key(error: ErrorDetails, place: Place, root: type[Block]) -> str:
    name = str(error["loc"][-1])
    owner = place.blocks[0] if place.blocks else root
    close = nearest(name, owner.model_fields)
    there = elsewhere(name, error["input"], root) if close is None or place.key == name else None
    if there is not None:
        return sentence(place.key, "unknown key here", f"its place is {there}")
    if close is not None:
        return sentence(place.key, f"unknown key{_of(owner)}", f"nearest valid spelling: {close}")
    valid = listed(owner.model_fields)
    return sentence(place.key, f"unknown key{_of(owner)}", f"remove it, the keys here are {valid}")


def _of(owner: type[Block]) -> str:
    tags = tags_of(owner)
    return f" of {tags[0]}" if len(tags) == 1 else ""


def _unknown_tag(place: Place, discriminator: str) -> str:
    key = f"{place.key}.{discriminator}"
    written = place.value[discriminator] if is_block(place.value) else None
    tags = [tag for block in place.blocks for tag in tags_of(block)]
    if not isinstance(written, str):
        return sentence(key, f"expected a text, got {show(written)}", f"write one of {listed(tags)}")
    if written in METRIC_TYPES and LOSS_TYPES.issuperset(tags):
        return sentence(key, f"{written} is a metric, which can't be trained on", "move it to eval.metrics")
    return sentence(key, f"there is no {discriminator} {show(written)}", choose(written, tags))


def _missing_tag(place: Place, discriminator: str) -> str:
    assert is_block(place.value)
    hint = _hint(place)
    if hint is not None:
        keys = listed(place.value) or "no keys"
        return sentence(place.key, f"can't tell what kind of {place.key} this is from {keys}", hint)
    tags = [tag for block in place.blocks for tag in tags_of(block)]
    misspelt = nearest(discriminator, [str(key) for key in place.value])
    said = "required and missing" + (f" (there is a key {plain(misspelt)})" if misspelt else "")
    return sentence(f"{place.key}.{discriminator}", said, f"write one of {listed(tags)}")


def _wrong_value(error: ErrorDetails, place: Place, context: _Context) -> str:
    value: object = error["input"]
    field = place.field
    if error["type"] == "literal_error" and field is not None:
        choices = choices_in(field.annotation)
        if len(choices) == 1:
            said = f"expected {choices[0]}, got {show(value)}"
            return sentence(place.key, said, f"write {place.leaf}: {choices[0]}")
        if place.leaf == "mask_scope" and value in ("nsc", "repeat_across_batch"):
            said = f"{value} needs n_sources, which a fresh adversary does not have"
            return sentence(place.key, said, "write c for one source, or bc for one per batch element")
        said = f"expected one of {listed(choices)}, got {show(value)}"
        return sentence(place.key, said, choose(value, choices))
    words = words_of(field) if field is not None else ()
    expected = words[min(place.depth, len(words) - 1)].expected if words else "another kind of value"
    if len(words) > 1 and error["loc"][-1:] == ("[key]",):
        expected = words[1].expected
    if error["type"] == "less_than_equal" and context.get("le") == MAX_INTEGER:
        expected = f"an integer <= {MAX_INTEGER}"
    return sentence(place.key, f"expected {expected}, got {show(value)}", _mended(place, value) or _write(place))


def _mended(place: Place, value: object) -> str | None:
    """The way out that keeps what was evidently meant: 1e4 for an integer, "yes" for a flag."""
    expected = words_of(place.field)[0].expected if place.field and words_of(place.field) else ""
    if place.depth:
        return None
    if expected == "true or false":
        word = str(value).lower()
        meant = "true" if word in _TRUE else "false" if word in _FALSE else None
        return f"write {place.leaf}: {meant}" if meant else None
    if expected.startswith("an integer"):
        if isinstance(value, float) and value.is_integer() and 1 <= value <= MAX_INTEGER:
            return f"write {place.leaf}: {int(value)}"
        if isinstance(value, str) and value.isascii() and value.isdigit() and 1 <= int(value[:12]) <= MAX_INTEGER:
            return f"write {place.leaf}: {int(value[:12])}"
    return None


def _write(place: Place) -> str:
    """An example of what to write, from the field's examples, default or words."""
    if place.field is None:
        return "write a value"
    example = _example(place)
    if example is not None:
        return f"write for example {place.leaf}: {flow(example)}"
    if place.blocks:
        return f"write a block with {_keys_to_write(place)}"
    choices = choices_in(place.field.annotation)
    return f"write one of {listed(choices)}" if choices else f"write a value for {place.leaf}"


def _hint(place: Place) -> str | None:
    """What to write where the keys of a block tell its kind, and no tag does."""
    is_told_by_keys = len(place.blocks) > 1 and not all(tags_of(block) for block in place.blocks)
    return _HINTS.get(place.key) if is_told_by_keys else None


def _keys_to_write(place: Place) -> str:
    hint = _hint(place)
    if hint is not None:
        return hint.removeprefix("write ")
    if len(place.blocks) == 1:
        return listed(required_keys(place.blocks[0]) or place.blocks[0].model_fields)
    tags = [tag for block in place.blocks for tag in tags_of(block)]
    name = next(name for name in ("fn_type", "type", "kind", "model_class") if name in place.blocks[0].model_fields)
    return f"{name} one of {listed(tags)}"


def _example(place: Place) -> object:
    field = place.field
    assert field is not None
    if field.examples:
        return field.examples[0]
    is_plain = not isinstance(field.default, Block) and not field.is_required()
    if is_plain and field.default is not None and (not is_list(field.default) or field.default):
        return field.default
    words = words_of(field)
    return words[0].example if words else None
