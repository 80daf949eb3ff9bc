"""Dotted places in a run file: an entry of a list is addressed by its name, its type, its site pattern or its index."""

import re
from collections.abc import Mapping
from copy import deepcopy

from vpd.config.block import choose, plain, refusal, show
from vpd.config.values import is_block, is_list

Step = str | int
Place = tuple[Step, ...]
_LABELS = ("name", "type", "module_pattern", "layer_pattern")


def find_place(document: Mapping[str, object], path: str) -> Place:
    """The keys and indices that lead to a place that the document has.

    Names may hold dots (``pd.decomposition_targets.h.0.mlp.c_fc.C``): at each step the longest one that fits is meant.

    Args:
        document: nested blocks, with all defaults written out.
        path: dotted; ``[2]`` is the same as ``.2``.

    Raises:
        ConfigError: a key that is not there, with the nearest one, or an entry that could be several.
    """
    value: object = document
    place: list[Step] = []
    rest = re.sub(r"\[(\d+)\]", r".\1", path)
    while rest:
        done = path_text(document, tuple(place))
        choices = _choices(value, done)
        fitting = [name for name in choices if rest == name or rest.startswith(f"{name}.")]
        if not fitting:
            raise _unknown(rest, choices, done, value)
        name = max(fitting, key=len)
        steps = choices[name]
        if len(steps) > 1:
            raise refusal(
                f"{done}.{plain(name)}",
                f"{len(steps)} entries are called so",
                f"write the name of one, or its index: {done}.{steps[0]}",
            )
        place.append(steps[0])
        value = _inside(value, steps[0])
        rest = rest[len(name) + 1 :]
    if not place:
        raise refusal("", "a place in a run file needs a key", "write for example pd.seed")
    return tuple(place)


def path_text(document: Mapping[str, object], place: Place) -> str:
    """A place as a person writes it, entries of lists by their own name where it is the only one."""
    value: object = document
    words: list[str] = []
    for step in place:
        names = [name for name, steps in _choices(value, "").items() if steps == [step] and name != str(step)]
        words.append(names[0] if names else str(step))
        value = _inside(value, step)
    return ".".join(words)


def replaced(document: Mapping[str, object], changes: Mapping[Place, object]) -> dict[str, object]:
    """A copy with other values at some places."""
    copy = deepcopy(dict(document))
    for place, value in changes.items():
        owner: object = copy
        for step in place[:-1]:
            owner = _inside(owner, step)
        assert isinstance(owner, dict | list)
        owner[place[-1]] = deepcopy(value)  # pyright: ignore  # a place fits its document: keys in blocks, indices in lists
    return copy


def _choices(value: object, done: str) -> dict[str, list[Step]]:
    """What can be written after a place, and the steps that it may mean."""
    if is_block(value):
        return {name: [name] for name in value}
    if not is_list(value):
        said = "is null in this file" if value is None else f"is {show(value)}, which has no keys"
        raise refusal(done, said, f"give {done} as a whole, or write it into the run file first")
    choices: dict[str, list[Step]] = {}
    for label in _LABELS:
        called: dict[str, list[Step]] = {}
        for i, entry in enumerate(value):
            word = entry.get(label) if is_block(entry) else None
            if isinstance(word, str):
                called.setdefault(word, []).append(i)
        # An entry's own name comes before another's type.
        choices = choices | {word: steps for word, steps in called.items() if word not in choices}
    indices: dict[str, list[Step]] = {str(i): [i] for i in range(len(value))}
    return choices | indices


def _inside(value: object, step: Step) -> object:
    if is_block(value) and isinstance(step, str):
        return value[step]
    assert is_list(value) and isinstance(step, int)
    return value[step]


def _unknown(rest: str, choices: Mapping[str, list[Step]], done: str, value: object) -> Exception:
    word = rest.partition(".")[0]
    where = f"{done}.{plain(word)}" if done else plain(word)
    named = [name for name in choices if not name.isdigit()] or list(choices)
    if is_list(value):
        return refusal(where, "there is no such entry", choose(word, named) if named else "the list is empty")
    return refusal(where, "unknown key", choose(word, named) if named else "the block has no keys")
