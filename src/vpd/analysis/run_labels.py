"""How runs that stand side by side are told apart."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from vpd.errors import RunError


def short_labels(paths: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart, without the words that all begin with."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in paths]
    # Cut after the last separator that all share, so that what is left are whole words.
    shared = 0
    for i, letters in enumerate(zip(*names, strict=False)):
        if len(set(letters)) > 1:
            break
        shared = i + 1 if letters[0] in "-_/" else shared
    return tuple(name[shared:] for name in names)


def refuse_repeated(paths: Sequence[Path]) -> None:
    """Refuse what is no comparison.

    Raises:
        RunError: fewer than two runs, or one given twice.
    """
    if len(paths) < 2:
        raise RunError("a comparison needs at least two run directories; give for example runs/a runs/b")
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise RunError(f"{paths[i]} is given twice; give each run once")


def place_beside(paths: Sequence[Path], word: str) -> Path:
    """A path beside the first run, named after which runs are given: the same ones in any order mean the same."""
    places = sorted(str(path.resolve()) for path in paths)
    return paths[0].parent / f"{word}-{hashlib.sha256(json.dumps(places).encode()).hexdigest()[:8]}"
