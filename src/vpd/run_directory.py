"""The run directory: the interface between writing and reading. Everything in it appears whole or not at all."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vpd.errors import RunError

SCHEMA_VERSION = 1

Facts = dict[str, object]


def directory_name(label: str | None, kind: str, content: str) -> str:
    """A run directory's name: the label as far as it makes a name, without one the kind and a hash of the run file."""
    if label is None:
        return f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "run"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the file, flush to disk, rename: a reader meets the old content or the new."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def open_lock(path: Path) -> TextIO:
    """A file to hold a lock on, made where it is not there.

    Raises:
        RunError: it is a link. A folder may come from someone else, and a link in it lead to any file.
    """
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RunError(f"{path} is a link to another file, which is not followed; delete it") from None


@dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run; checkpoints, figures and the report have writers of their own.

    Attributes:
        path: the folder.
        writes: False in a process of the run that leaves writing to another; its calls then change nothing.
    """

    path: Path
    writes: bool = True

    @property
    def config(self) -> Path:
        """The pinned run file, a full dump."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """``run.json``: schema version, package versions, devices, status."""
        return self.path / "run.json"

    @property
    def target(self) -> Path:
        """Weights of a target that was trained in-process."""
        return self.path / "target.safetensors"

    @property
    def metrics(self) -> Path:
        """``metrics.jsonl``: one record a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """``checkpoints/<step>/{decomposition,training}``."""
        return self.path / "checkpoints"

    def read_facts(self) -> Facts:
        """What ``run.json`` says.

        Raises:
            RunError: where this is no run directory.
        """
        if not self.path.is_dir():
            raise RunError(f"there is no run directory {self.path}; give the folder that `vpd train` printed")
        try:
            facts = json.loads(self.facts.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{self.path} is no run directory (its run.json can't be read: {type(error).__name__}); "
                "give the folder that `vpd train` printed"
            ) from None
        if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{self.facts} has another schema version than {SCHEMA_VERSION}; open it with the version that wrote it"
            )
        return facts

    def pin(self, config: str) -> None:
        """Replace the pinned run file."""
        if self.writes:
            write_atomically(self.config, config)

    def update_facts(self, **changes: object) -> None:
        """Replace some of the facts."""
        self.write_facts(self.read_facts() | changes)

    def write_facts(self, facts: Mapping[str, object]) -> None:
        """Replace all of the facts."""
        if self.writes:
            write_atomically(self.facts, json.dumps(dict(facts), indent=2) + "\n")

    def keep_records(self, keep: Callable[[Facts], bool]) -> None:
        """Drop the records for which ``keep`` is false, and a last line that was cut short."""
        if not (self.writes and self.metrics.exists()):
            return
        lines = self.metrics.read_bytes().split(b"\n")[:-1]
        kept = [line + b"\n" for number, line in enumerate(lines, 1) if keep(self._record(number, line))]
        write_atomically(self.metrics, b"".join(kept))

    def _record(self, number: int, line: bytes) -> Facts:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise RunError(f"{self.metrics} line {number} is no JSON object; mend or delete that line")
        return record

    def append_record(self, record: Mapping[str, object]) -> None:
        """Add one record as one line in one write; a disk without room for all of it gets none of it."""
        if not self.writes:
            return
        line = (json.dumps(finite(record)) + "\n").encode()
        descriptor = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            error.filename = str(self.metrics)
            raise
        finally:
            os.close(descriptor)

    def drop_figures_after(self, step: int) -> None:
        """Remove figures of states that are computed again."""
        for folder in (self.path / "figures").glob("*") if self.writes else ():
            if folder.name.isdecimal() and int(folder.name) > step:
                shutil.rmtree(folder)
            waiting = folder.stem.removeprefix("waiting-")
            if folder.suffix == ".npz" and waiting.isdecimal() and int(waiting) > step:
                folder.unlink()

    def sweep(self) -> None:
        """Remove drafts that a killed process left; only for the process that holds the run."""
        if not self.writes:
            return
        for draft in (*self.path.glob(".*.*"), *self.path.glob("nonfinite/.*"), *self.path.glob("figures/.*")):
            if draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft)
            else:
                draft.unlink()

    @contextmanager
    def locked(self) -> Generator[Callable[[], None]]:
        """Hold the run: a second process that trains it is refused.

        Yields what makes sure that the path still is the folder that is held: where a file system has gone, what is
        written there next would make it anew, in another place.

        Raises:
            RunError: where another process holds it; by what is yielded, where the path is another folder or none.
        """
        if not self.writes:
            yield lambda: None
            return
        with open_lock(self.path / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"another process is training {self.path}; wait for it, or give this run another run_id"
                ) from None

            def check() -> None:
                try:
                    same = os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
                except OSError:
                    same = False
                if not same:
                    raise RunError(
                        f"{self.path} is gone, or another folder is in its place; what was saved is where it was: "
                        "bring its file system back, and start again"
                    )

            yield check


def create_run_directory(path: Path, config: str, facts: Mapping[str, object], target: bytes | None) -> RunDirectory:
    """Make a run directory with its pinned configuration and facts, in one rename.

    Args:
        path: where; must not exist.
        config: the pinned run file.
        facts: content of ``run.json``.
        target: content of ``target.safetensors``, if any.

    Raises:
        RunError: where the folder can't be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        draft = RunDirectory(unfinished)
        write_atomically(draft.config, config)
        draft.write_facts({"schema_version": SCHEMA_VERSION, **facts})
        if target is not None:
            write_atomically(draft.target, target)
        os.rename(unfinished, path)
    except OSError as error:
        raise RunError(f"can't write the run directory {path} ({error.strerror}); choose another out_dir") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return RunDirectory(path)


def refuse_unwritable(path: Path) -> None:
    """Find out before long work starts whether a run directory could be made.

    Raises:
        RunError: where its nearest existing parent is no folder that can be written.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise RunError(f"can't write the run directory {path} ({parent} is no writable folder); choose another out_dir")


def finite(value: object) -> object:
    """The same structure with NaN and infinities as null, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
