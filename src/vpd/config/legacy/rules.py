"""The tables of a conversion: one rule for each key that a block of an older file may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vpd.config.block import Block, nearest, show
from vpd.config.legacy.draft import Draft, Path, place
from vpd.config.values import is_block, is_list


@dataclass(frozen=True)
class Field:
    """One key of an older file.

    Attributes:
        draft: the conversion it belongs to.
        old: its path.
        value: its value, never null.
        beside: the new block that its table writes to.
    """

    draft: Draft
    old: Path
    value: object
    beside: Path

    def move(self, new: str, value: object | None = None, says: str = "") -> None:
        """To a key of the block, as it is."""
        self.draft.move(self.old, self.value if value is None else value, (*self.beside, *place(new)), says)

    def compute(self, says: str, values: Mapping[str, object], new: str = "") -> None:
        """To keys of the block, by a computation."""
        at = {(*self.beside, *place(key)): value for key, value in values.items()}
        self.draft.compute(self.old, self.value, says, at, (*self.beside, *place(new)))

    def drop(self, says: str) -> None:
        """To nowhere, without loss."""
        self.draft.drop(self.old, self.value, says)

    def refuse(self, says: str, new: str | None = None) -> None:
        """To nowhere, with a reason."""
        self.draft.refuse(self.old, self.value, says, None if new is None else (*self.beside, *place(new)))


Rule = Callable[[Field], None]
Table = Mapping[str, Rule]


def walk(draft: Draft, block: Mapping[str, object], old: Path, beside: Path, table: Table) -> None:
    """Apply a table to a block: every key meets its rule, or is refused by name."""
    for name, value in block.items():
        path = (*old, name)
        if name not in table:
            draft.refuse(path, value, unknown(name, table, draft.vocabulary))
        elif value is None:
            draft.drop(path, value, "null says nothing")
        else:
            table[name](Field(draft, path, value, beside))


def unknown(name: str, known: Mapping[str, object], vocabulary: str) -> str:
    """Why a key without a rule is refused."""
    close = nearest(name, known)
    said = f"no known field of the {vocabulary} vocabulary"
    return f"{said}; nearest known spelling: {close}" if close else f"{said}; remove it if it has no effect"


def to(new: str, says: str = "") -> Rule:
    """Another place, the same value."""
    return lambda field: field.move(new, says=says)


def native(*blocks: type[Block]) -> dict[str, Rule]:
    """The keys that blocks of today's vocabulary have, under the same names."""
    names = [name for block in blocks for name in (*block.model_fields, *block.inactive_keys)]
    return {name: to(name) for name in names}


def inside(table: Table, new: str = "") -> Rule:
    """A block with a table of its own; `new` is the block it writes to."""

    def rule(field: Field) -> None:
        if is_block(field.value) and field.value:
            walk(field.draft, field.value, field.old, (*field.beside, *place(new)), table)
        elif is_block(field.value):
            field.drop("an empty block says nothing")
        else:
            field.refuse(f"expected a block of keys, got {show(field.value)}")

    return rule


def each(new: str, item: Rule) -> Rule:
    """A list of blocks, each one meeting the rule with its own position."""

    def rule(field: Field) -> None:
        at = (*field.beside, *place(new))
        if not is_list(field.value) or not any(is_block(entry) for entry in field.value):
            field.draft.move(field.old, field.value, at)
            return
        for i, entry in enumerate(field.value):
            item(Field(field.draft, (*field.old, i), entry, (*at, i)))

    return rule


def cosmetic(says: str) -> Rule:
    """A field about looks: it changes nothing that is computed or kept."""
    return lambda field: field.drop(says)


def gone(says: str) -> Rule:
    """A field without a counterpart: only null is converted."""
    return lambda field: field.refuse(f"{show(field.value)} has no counterpart here: {says}")


def only(accepted: object, says: str, otherwise: str) -> Rule:
    """A field with one value that changes nothing; any other is refused."""

    def rule(field: Field) -> None:
        if field.value == accepted and type(field.value) is type(accepted):
            field.drop(says)
        else:
            field.refuse(f"{show(field.value)} has no counterpart here: {otherwise}")

    return rule


def marks(accepted: str, says: str, new: str = "") -> Rule:
    """A key that only says which kind a block is, which the new key says as well."""

    def rule(field: Field) -> None:
        if field.value == accepted:
            field.compute(says, {}, new)
        else:
            field.refuse(f"{show(field.value)} is not known here; known is {accepted}")

    return rule


def faithfulness_warmup(name: str, default: float, new: str) -> Rule:
    """A rate of the warm-up, which has no effect where its block has no warm-up steps."""

    def rule(field: Field) -> None:
        block: object = field.draft.given
        for part in field.old[:-1]:
            block = block.get(str(part)) if is_block(block) else None
        steps = block.get("faithfulness_warmup_steps") if is_block(block) else None
        if steps in (None, 0) and field.value != default:
            field.drop("no effect without faithfulness_warmup_steps")
        else:
            field.move(f"{new}{name}")

    return rule
