"""Walks the models: the keys a place of a run file takes, their words, and the tags that select a block."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeGuard, get_args, get_origin

from pydantic.fields import FieldInfo

from vpd.config.block import Block, plain
from vpd.config.values import Words, is_block, is_list

_TAG_FIELDS = ("type", "fn_type", "kind", "model_class")


@dataclass(frozen=True)
class Place:
    """A place in a run file: its dotted key, the blocks that may stand there, and the field that holds it."""

    key: str
    leaf: str
    blocks: tuple[type[Block], ...]
    field: FieldInfo | None
    value: object
    depth: int


def blocks_in(annotation: object) -> tuple[type[Block], ...]:
    """The blocks an annotation allows, inside unions, lists and optionals."""
    if _is_block_type(annotation):
        return (annotation,)
    found = [block for part in _parts(annotation) for block in blocks_in(part)]
    return tuple(dict.fromkeys(found))


def _is_block_type(annotation: object) -> TypeGuard[type[Block]]:
    return isinstance(annotation, type) and issubclass(annotation, Block)


def choices_in(annotation: object) -> tuple[str, ...]:
    """The literal values an annotation allows."""
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    return tuple(choice for part in _parts(annotation) for choice in choices_in(part))


def words_of(field: FieldInfo) -> tuple[Words, ...]:
    """What describes a field, then its items, then theirs."""
    return (*_last_words(field.metadata), *_words_in(field.annotation))


def tags_of(block: type[Block]) -> tuple[str, ...]:
    """The values that select a block among its siblings."""
    for name in _TAG_FIELDS:
        if name in block.model_fields:
            tags = choices_in(block.model_fields[name].annotation)
            if tags:
                return tags
    return ()


def locate(loc: tuple[int | str, ...], document: object, root: type[Block]) -> Place:
    """The place that an error location means; the location also holds tags of unions, which no file has."""
    place = Place("", "", (root,), None, document, 0)
    for part in loc:
        place = _step(place, part)
    return place


def _step(place: Place, part: int | str) -> Place:
    if isinstance(part, int):
        inside = place.value[part] if is_list(place.value) and part < len(place.value) else None
        return Place(f"{place.key}[{part}]", place.leaf, place.blocks, place.field, inside, place.depth + 1)
    chosen = tuple(block for block in place.blocks if part in (*tags_of(block), getattr(block, "tag", None)))
    if len(place.blocks) > 1 and chosen:
        return Place(place.key, place.leaf, chosen, place.field, place.value, place.depth)
    field = place.blocks[0].model_fields.get(part) if len(place.blocks) == 1 else None
    present = is_block(place.value) and part in place.value
    if field is None and not present:
        return place
    key = f"{place.key}.{plain(part)}" if place.key else plain(part)
    value = place.value[part] if is_block(place.value) and present else None
    if field is None:
        # A name in a free block, whose words follow those of the block and of its names; or an unknown key.
        return Place(key, place.leaf, place.blocks, place.field, value, place.depth + 2)
    return Place(key, part, blocks_in(field.annotation), field, value, 0)


def elsewhere(name: str, value: object, root: type[Block], prefix: str = "") -> str | None:
    """The dotted key of the same name that could hold the value, in a block that is always there."""
    for own, field in root.model_fields.items():
        inner = blocks_in(field.annotation)
        if own == name and prefix and is_block(value) == bool(inner):
            return prefix + own
        if len(inner) == 1 and not _is_list(field):
            found = elsewhere(name, value, inner[0], f"{prefix}{own}.")
            if found is not None:
                return found
    return None


def flow(value: object) -> str:
    """A value as YAML in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Block):
        return flow(value.model_dump())
    if is_block(value):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if is_list(value):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return f"'{value}'" if isinstance(value, str) and value[:1] in ("*", "&", "!", "[", "{", "") else str(value)


def required_keys(block: type[Block]) -> Mapping[str, FieldInfo]:
    """The fields of a block that a file has to give."""
    return {name: field for name, field in block.model_fields.items() if field.is_required()}


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(part) is tuple for part in (field.annotation, *get_args(field.annotation)))


def _words_in(annotation: object) -> tuple[Words, ...]:
    own = _last_words(getattr(annotation, "__metadata__", ()))
    return (*own, *(word for part in _parts(annotation) for word in _words_in(part)))


def _last_words(metadata: Iterable[object]) -> tuple[Words, ...]:
    """An alias may be narrowed by later words, which then hold."""
    return tuple(word for word in metadata if isinstance(word, Words))[-1:]


def _parts(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[:1]
    return () if get_origin(annotation) is Literal else get_args(annotation)
