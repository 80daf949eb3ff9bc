"""What analyses write: ``<run>/<kind>/<name>/``, whole or not at all, with what it was made from in ``meta.json``."""

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vpd.errors import RunError
from vpd.run_directory import write_atomically

META = "meta.json"


@dataclass(frozen=True)
class Origin:
    """What an artefact was made from.

    Attributes:
        run_id: of the run.
        step: of the checkpoint.
        sizes: C of each site.
    """

    run_id: str
    step: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Artefact:
    """A finished artefact.

    Attributes:
        path: its folder.
        origin: what it was made from.
        facts: the rest of ``meta.json``.
    """

    path: Path
    origin: Origin
    facts: Mapping[str, object]


def artefact_path(run: Path, kind: str, name: str, force: bool = False) -> Path:
    """Where an artefact is to be written; call it before long work starts.

    Args:
        run: the run directory.
        kind: ``harvest``, ``attributions``, ``clusters``, ...
        name: of the artefact, a single folder name.
        force: replace one that is there.

    Raises:
        RunError: a name that is no folder name, one that is taken, or a folder that can't be written.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise RunError(f"{name!r} can't be the name of a folder under {kind}/; give a plain one, as in --name first")
    path = run / kind / name
    if path.exists() and not force:
        raise RunError(f"{path} is there already; give another --name, or replace it with --force")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise RunError(f"can't write {path} ({parent} can't be written); copy the run directory to where you can")
    return path


@contextmanager
def new_artefact(path: Path, schema_version: int, origin: Origin, facts: Mapping[str, object]) -> Generator[Path]:
    """A draft folder to write into; it gets its name when all is written, and vanishes where something fails.

    Args:
        path: from :func:`artefact_path`.
        schema_version: of this kind of artefact.
        origin: what it is made from.
        facts: what else ``meta.json`` says; may be filled while the folder is written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        made = datetime.now(UTC).isoformat(timespec="seconds")
        what = {"run_id": origin.run_id, "step": origin.step, "sites": dict(origin.sizes), "made": made}
        write_atomically(draft / META, json.dumps({"schema_version": schema_version, **what, **facts}, indent=2) + "\n")
        _put(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, path: Path) -> None:
    """Give a draft its name; what was there before goes once the new one is in its place."""
    before = path.with_name(f".{path.name}.{os.getpid()}.before")
    if path.exists():
        os.rename(path, before)
    os.rename(draft, path)
    shutil.rmtree(before, ignore_errors=True)


def artefact_names(run: Path, kind: str) -> list[str]:
    """The finished artefacts of a kind, by name."""
    return sorted(meta.parent.name for meta in (run / kind).glob(f"*/{META}") if not meta.parent.name.startswith("."))


def open_artefact(run: Path, kind: str, schema_version: int, name: str | None = None) -> Artefact:
    """A finished artefact.

    Args:
        run: the run directory.
        kind: ``harvest``, ``attributions``, ``clusters``, ...
        schema_version: the one that is understood.
        name: None takes the only one there is.

    Raises:
        RunError: no run directory, no such artefact, several without a name, an unfinished one, or one of another
            schema.
    """
    if not run.is_dir():
        raise RunError(f"there is no run directory {run}; give the folder that `vpd train` printed")
    names = artefact_names(run, kind)
    if name is None:
        if len(names) != 1:
            found = f"has several {kind}: {', '.join(names)}; say which" if names else f"has no {kind} yet; make one"
            raise RunError(f"{run} {found}")
        name = names[0]
    path = run / kind / name
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none"
        state = "is not finished" if path.exists() else "does not exist"
        raise RunError(f"{path} {state}; {there}")
    try:
        meta = json.loads((path / META).read_bytes())
        version, run_id, step = meta.pop("schema_version"), meta.pop("run_id"), meta.pop("step")
        sizes = {str(site): int(C) for site, C in meta.pop("sites").items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / META} can't be read ({type(error).__name__}); make {kind} {name} again") from None
    if version != schema_version:
        raise RunError(
            f"{path} has schema version {version}, and this version of vpd reads {schema_version}; "
            "open it with the version that wrote it, or make it again under another name"
        )
    return Artefact(path, Origin(run_id, step, sizes), meta)
