"""A conversion in the making: what the new file will say, and what became of each field of the old one."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vpd.config.block import plain
from vpd.config.values import is_block, is_list

Path = tuple[str | int, ...]
"""A place in a file: names of blocks and positions in lists."""
Kind = Literal["taken", "renamed", "computed", "dropped", "refused", "added"]
_WORD = re.compile(r"[A-Za-z0-9_*+=/-]+")


@dataclass(frozen=True)
class Row:
    """What became of one field.

    Attributes:
        kind: taken (same name and meaning), renamed, computed from old values, dropped without effect, refused;
            or added, where no old field says it.
        old: dotted key of the old field; null for what was added, and for a required field that is missing.
        new: dotted key or keys of today's vocabulary; null where there is none.
        says: how, or why.
    """

    kind: Kind
    old: str | None
    new: str | None
    says: str


def dotted(path: Path) -> str:
    """A place as it is written; names that would be ambiguous are quoted."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def as_read(path: Path) -> str:
    """A place as the reader of run files names it in a refusal."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{plain(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def place(key: str) -> Path:
    """The path of a dotted key without list positions."""
    return tuple(key.split(".")) if key else ()


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every field in a value: scalars, lists of scalars, and empty blocks."""
    if is_block(value) and value:
        for name, child in value.items():
            yield from leaves(child, (*path, name))
    elif is_list(value) and any(is_block(item) for item in value):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path, value


class Draft:
    """Collects what the new file says, and exactly one row for each field of the old one.

    Attributes:
        vocabulary: name of the old one.
        given: the old file.
        rows: by the path of the old field.
        added: what no old field says.
        notices: sentences about readings that a person should look at.
    """

    def __init__(self, vocabulary: str, given: Mapping[str, object]) -> None:
        self.vocabulary = vocabulary
        self.given = given
        self.rows: dict[Path, Row] = {}
        self.added: list[Row] = []
        self.notices: list[str] = []
        self._values: dict[Path, object] = {}
        self._above: set[Path] = {()}
        self._owners: dict[Path, Path] = {}
        self._origins: dict[str, Path] = {}

    def move(self, old: Path, value: object, new: Path, says: str = "") -> None:
        """Give a new key the old value, as it is."""
        if self._put(old, value, value, new):
            for inner, _ in leaves(value):
                self._origins[as_read((*new, *inner))] = (*old, *inner)
                same = (*old, *inner)[-1] == (*new, *inner)[-1]
                why = says or ("same name, same meaning" if same else "another name, same meaning")
                self._record("taken" if same else "renamed", (*old, *inner), why, (*new, *inner))

    def compute(self, old: Path, given: object, says: str, values: Mapping[Path, object], new: Path = ()) -> None:
        """Give new keys values that follow from the old one.

        Args:
            old: the old field, or block of fields.
            given: its value.
            says: how.
            values: by new key; may be empty where the old field only repeats what others say.
            new: the new key to name where `values` is empty.
        """
        if all([self._put(old, given, value, key) for key, value in values.items()]):
            for inner, _ in leaves(given):
                self._record("computed", (*old, *inner), says, *(values or ([new] if new else [])))

    def drop(self, old: Path, value: object, says: str) -> None:
        """Leave out a field that has no effect."""
        for inner, _ in leaves(value):
            self._record("dropped", (*old, *inner), says)

    def refuse(self, old: Path, value: object, says: str, new: Path | None = None) -> None:
        """Say why a field can't be converted; `new` is the place it would have filled."""
        for inner, _ in leaves(value):
            self._record("refused", (*old, *inner), says, *([] if new is None else [new]))

    def add(self, new: Path, value: object, says: str) -> None:
        """Say what today's vocabulary needs and no old field says."""
        assert not self.says(new), new
        self._values[new] = value
        self._above.update(new[:i] for i in range(len(new)))
        self.added.append(Row("added", None, dotted(new), says))

    def notice(self, sentence: str) -> None:
        """Ask for a look at a reading."""
        if sentence not in self.notices:
            self.notices.append(sentence)

    def says(self, new: Path) -> bool:
        """Whether the new file says something at a place, or below it."""
        return new in self._values or new in self._above

    def document(self) -> dict[str, object]:
        """The new file so far."""
        document = _assembled(list(self._values.items()))
        return dict(document) if is_block(document) else {}

    def refuse_new(self, key: str, says: str) -> bool:
        """Refuse the old field that gave a new key its value; false where no field did."""
        for name in and_above(key):
            if name in self._origins:
                old = self._origins[name]
                for path in [old] if old in self.rows else [p for p in self.rows if p[: len(old)] == old]:
                    self.rows[path] = Row("refused", dotted(path), key, says)
                return True
        return False

    def _put(self, old: Path, given: object, value: object, new: Path) -> bool:
        taken = [new[:i] for i in range(len(new) + 1) if new[:i] in self._values]
        if taken or new in self._above:
            by = f" by {dotted(self._owners[taken[0]])}" if taken else ""
            self.refuse(old, given, f"{dotted(new)} is given already{by}")
            return False
        self._values[new] = value
        self._above.update(new[:i] for i in range(len(new)))
        self._owners[new] = old
        self._origins[as_read(new)] = old
        return True

    def _record(self, kind: Kind, old: Path, says: str, *new: Path) -> None:
        assert old not in self.rows or kind == "refused", dotted(old)
        self.rows[old] = Row(kind, dotted(old), ", ".join(map(dotted, new)) or None, says)


def _quoted(name: str) -> str:
    return name if _WORD.fullmatch(name) else json.dumps(name)


def and_above(key: str) -> Iterator[str]:
    """A dotted key, then the blocks and lists that hold it."""
    while key:
        yield key
        key = key[: max(key.rfind("."), key.rfind("["), 0)]


def _assembled(values: list[tuple[Path, object]]) -> object:
    if len(values) == 1 and values[0][0] == ():
        return values[0][1]
    inside: dict[str | int, list[tuple[Path, object]]] = {}
    for path, value in values:
        inside.setdefault(path[0], []).append((path[1:], value))
    children = {part: _assembled(inner) for part, inner in inside.items()}
    numbers = [part for part in children if isinstance(part, int)]
    if numbers:
        # A position that was refused leaves a hole.
        return [children.get(i) for i in range(max(numbers) + 1)]
    return children
