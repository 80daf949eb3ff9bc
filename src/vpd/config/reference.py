"""The vocabulary as a JSON schema and as tables for the documentation."""

from collections.abc import Mapping

from pydantic.fields import FieldInfo

from vpd.config.block import Block
from vpd.config.metrics import LOSS_TYPES
from vpd.config.pretraining import PretrainingConfig
from vpd.config.run import RunConfig
from vpd.config.values import is_block, is_list
from vpd.config.vocabulary import blocks_in, choices_in, flow, tags_of, words_of

_REF = "#/$defs/"


def json_schema() -> dict[str, object]:
    """A JSON schema of the run file, for editors; every field has a description."""
    schema: dict[str, dict[str, object]] = RunConfig.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    renamed = {_REF + name: f"{_REF}{name}Metric" for name in LOSS_TYPES}
    definitions["Eval"] = _renaming(definitions["Eval"], renamed)
    for name in sorted(LOSS_TYPES):
        definitions[f"{name}Metric"] = _without_coefficient(definitions[name])
    return dict(schema)


def _renaming(value: object, renamed: Mapping[str, str]) -> object:
    """A copy of a schema in which references to losses are references to their forms as metrics."""
    if is_block(value):
        return {key: _renaming(item, renamed) for key, item in value.items()}
    if is_list(value):
        return [_renaming(item, renamed) for item in value]
    return renamed.get(value, value) if isinstance(value, str) else value


def _without_coefficient(definition: object) -> object:
    """A loss in eval.metrics needs no coefficient."""
    assert is_block(definition)
    required = definition.get("required")
    assert is_list(required)
    return {**definition, "required": [key for key in required if key != "coeff"]}


def config_reference() -> str:
    """The vocabulary as markdown: one section and table for each block."""
    sections = [
        "# Configuration reference",
        "",
        "Made from the models; `!` marks a key that must be given.",
        "",
    ]
    for block in _every_block():
        sections += [*_section(block), ""]
    return "\n".join(sections)


def _every_block() -> list[type[Block]]:
    """All blocks in the order of the file, each once."""
    found: list[type[Block]] = []

    def visit(block: type[Block]) -> None:
        if block in found:
            return
        found.append(block)
        for field in block.model_fields.values():
            for child in blocks_in(field.annotation):
                visit(child)

    visit(RunConfig)
    visit(PretrainingConfig)
    return found


def _section(block: type[Block]) -> list[str]:
    rows = [
        f"| `{name}` | {_takes(field)} | {_default(field)} | {field.description or ''} |"
        for name, field in block.model_fields.items()
    ]
    about = (block.__doc__ or "").strip()
    return [
        f"## {block.__name__}",
        "",
        about,
        "",
        "| key | takes | default | meaning |",
        "|---|---|---|---|",
        *rows,
    ]


def _takes(field: FieldInfo) -> str:
    words, choices, blocks = words_of(field), choices_in(field.annotation), blocks_in(field.annotation)
    links = ", ".join(f"[{block.__name__}](#{block.__name__.lower()})" for block in blocks)
    if words:
        text = words[0].expected + (f": {links}" if links else "")
    elif links:
        text = f"one of {links}" if len(blocks) > 1 else links
    else:
        text = ", ".join(f"`{choice}`" for choice in choices)
    return text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "!"
    if field.default_factory is not None:
        return "see meaning"
    if isinstance(field.default, Block):
        tags = tags_of(type(field.default))
        return f"`{tags[0]}`" if tags else "its defaults"
    return f"`{flow(field.default)}`"
