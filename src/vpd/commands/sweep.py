"""``vpd sweep``: one run file for every point of a grid of values."""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from vpd.config import dump_run_file, read_run_file
from vpd.config.block import plain
from vpd.config.document import parse_document
from vpd.config.places import Place, find_place, path_text, replaced
from vpd.config.values import is_list
from vpd.config.vocabulary import flow
from vpd.errors import ConfigError
from vpd.run_directory import write_atomically

INDEX = "sweep.json"
MAX_POINTS = 1000
# A sweep gives these itself.
_OWN_KEYS = ("run_id", "run_name")


@dataclass(frozen=True)
class Axis:
    """One ``--grid``: a place of the run file, the values it takes, and what it is called in names.

    Attributes:
        place: keys and indices.
        path: the place as a person writes it.
        values: as YAML has them.
        label: the shortest end of the path that says which place is meant.
    """

    place: Place
    path: str
    values: tuple[object, ...]
    label: str


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its name, what differs, and its run file."""

    run_id: str
    values: Mapping[str, object]
    text: str


def sweep_command(source: Path, grids: Sequence[str], folder: Path | None, name: str | None, force: bool) -> None:
    """Write the run files of a grid and an index of them; nothing is written unless every one of them can be used."""
    read = read_run_file(source)
    document: dict[str, object] = read.config.model_dump(mode="json")
    name = name or read.config.run_id or read.config.run_name or read.name or "sweep"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "sweep"
    axes = parse_axes(document, grids)
    points = points_of(document, axes, name)
    folder = folder or Path("sweeps") / name
    index = {
        "schema_version": 1,
        "name": name,
        "source": source.name,
        "grid": {axis.path: list(axis.values) for axis in axes},
        "points": [{"run_id": p.run_id, "file": f"{p.run_id}.yaml", "values": dict(p.values)} for p in points],
    }
    files = {f"{point.run_id}.yaml": point.text for point in points}
    _write(folder, files | {INDEX: json.dumps(index, indent=2, ensure_ascii=False) + "\n"}, force)
    for notice in read.notices:
        typer.echo(f"vpd: {notice}", err=True)
    typer.echo(f"{len(points)} run files, train them with:  vpd train {folder}/*.yaml")
    typer.echo(str(folder))


def parse_axes(document: Mapping[str, object], grids: Sequence[str]) -> list[Axis]:
    """The grids of a command line against a run file with all defaults written out.

    Raises:
        ConfigError: a grid that is not ``PATH=VALUE,VALUE``, a place that is not there, or one that is given twice.
    """
    found: list[tuple[Place, str, tuple[object, ...]]] = []
    for grid in grids:
        path, equals, values = grid.partition("=")
        if not equals or not path.strip() or not values.strip():
            raise ConfigError(f"--grid {plain(grid)} has no values; write for example --grid pd.seed=0,1,2")
        place = find_place(document, path.strip())
        if place[0] in _OWN_KEYS:
            raise ConfigError(f"{path}: a sweep names its runs after their values; give --name for what comes before")
        for other, text, _ in found:
            if other[: len(place)] == place[: len(other)]:
                raise ConfigError(f"--grid {plain(path)} and --grid {plain(text)} set the same place; keep one of them")
        found.append((place, path_text(document, place), _values(path, values)))
    labels = _labels([path for _, path, _ in found])
    return [Axis(place, path, values, label) for (place, path, values), label in zip(found, labels, strict=True)]


def points_of(document: Mapping[str, object], axes: Sequence[Axis], name: str) -> list[Point]:
    """Every combination of values as a run file that was read back.

    Raises:
        ConfigError: a point that can't be used, two of one name, or too many.
    """
    if math.prod(len(axis.values) for axis in axes) > MAX_POINTS:
        raise ConfigError(f"the grids have more than {MAX_POINTS} points; give fewer values")
    points: dict[str, Point] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        words = [f"{axis.label}={_word(value)}" for axis, value in zip(axes, values, strict=True)]
        run_id = "_".join([name, *words])
        if run_id in points:
            raise ConfigError(f"two points of the grids have the run_id {run_id}; leave out the value that is repeated")
        changes: dict[Place, object] = {axis.place: value for axis, value in zip(axes, values, strict=True)}
        config = read_run_file(replaced(document, changes | {("run_id",): run_id, ("run_name",): None})).config
        text = dump_run_file(config)
        # What will be read is the file, so that is what is checked.
        if read_run_file(parse_document(text, f"{run_id}.yaml")).config != config:
            raise AssertionError(f"{run_id} changed when it was written and read")
        points[run_id] = Point(run_id, {axis.path: v for axis, v in zip(axes, values, strict=True)}, text)
    return list(points.values())


def _values(path: str, text: str) -> tuple[object, ...]:
    """Comma-separated YAML values; brackets and braces hold commas of their own."""
    values = parse_document(f"values: [{text}]", f"--grid {plain(path)}")["values"]
    assert is_list(values)
    return tuple(values)


def _labels(paths: Sequence[str]) -> list[str]:
    """For each path the shortest end that says which place is meant."""
    return [re.sub(r"[^A-Za-z0-9._-]+", "-", _label(path, paths)).strip("-.") for path in paths]


def _label(path: str, paths: Sequence[str]) -> str:
    words = path.split(".")
    for n in range(1, len(words)):
        label = ".".join(words[-n:])
        alone = sum(other == path or other.endswith(f".{label}") for other in paths) == 1
        # The key of an entry, such as coeff, says little without the entry's name, and an index nothing.
        of_entry = n == 1 and words[-2][:1].isupper()
        if alone and not of_entry and not label[:1].isdigit():
            return label
    return path


def _word(value: object) -> str:
    """A value as part of a name."""
    text = flow(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "none"


def _write(folder: Path, files: Mapping[str, str], force: bool) -> None:
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            draft.mkdir(parents=True)
            for name, text in files.items():
                (draft / name).write_text(text, encoding="utf-8")
            os.rename(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return
    if not force:
        raise ConfigError(f"{folder} exists already; give another folder with -o, or --force to replace its sweep")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give another one with -o")
    before = _files_of(folder)
    for name, text in files.items():
        write_atomically(folder / name, text)
    for name in before - set(files):
        (folder / name).unlink(missing_ok=True)


def _files_of(folder: Path) -> set[str]:
    """The run files that an earlier sweep wrote there; what else lies in the folder is not its own."""
    try:
        points = json.loads((folder / INDEX).read_bytes())["points"]
        return {name for point in points if (name := str(point["file"])) == Path(name).name and name.endswith(".yaml")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
