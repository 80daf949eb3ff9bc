"""The unfinished parts of an artefact, beside the place where the finished one will be."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from vpd.analysis.artefacts import artefact_path
from vpd.errors import RunError
from vpd.run_directory import write_atomically

# Seconds between saves; more where saving takes long.
SAVE_SECONDS, SAVE_SHARE = 60.0, 0.1

AnyPlan = TypeVar("AnyPlan", bound="Plan")


@dataclass(frozen=True)
class Plan:
    """What an artefact is asked to be; its shards and its continuation must be asked for the same."""

    schema_version: ClassVar[int]

    def dump(self) -> str:
        """As ``plan.json``."""
        return json.dumps({"schema_version": self.schema_version, **asdict(self)}, indent=2) + "\n"

    def differences(self, other: "Plan") -> list[str]:
        """Which fields differ, each with both values."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [f"{name} {mine} and not {theirs}" for name, mine, theirs in pairs if mine != theirs]

    @classmethod
    def read(cls: type[AnyPlan], content: bytes, where: str) -> AnyPlan:
        """What :meth:`dump` wrote.

        Raises:
            RunError: another schema, or content that is none of ours.
        """
        try:
            found: Mapping[str, object] = json.loads(content)
            version = found["schema_version"]
            if version == cls.schema_version:
                return cls(**{f.name: found[f.name] for f in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{where} can't be read ({type(error).__name__}); begin anew with --force") from None
        raise RunError(
            f"{where} has schema version {version}, and this version of vpd reads {cls.schema_version}; "
            "go on with the version that began it, or give another --name"
        )


class Parts(Generic[AnyPlan]):
    """A folder with the plan of an artefact, and what each of its shards has added up so far."""

    def __init__(self, run: Path, kind: str, name: str, plan: type[AnyPlan]) -> None:
        """Nothing is made yet.

        Args:
            run: the run directory.
            kind: of artefact.
            name: of the artefact.
            plan: of this kind.
        """
        self.path = run / kind / f".{name}.parts"
        self._run, self._kind, self._name, self._type = run, kind, name, plan
        self._saved, self._pause = time.monotonic(), SAVE_SECONDS

    @property
    def plan(self) -> Path:
        """The file of the plan."""
        return self.path / "plan.json"

    def planned(self) -> AnyPlan | None:
        """What was begun; None where nothing was."""
        return self._type.read(self.plan.read_bytes(), str(self.plan)) if self.plan.is_file() else None

    def begin(self, plan: AnyPlan, force: bool) -> Path:
        """Make sure that the parts are of this plan.

        Returns:
            Where the finished artefact is to be.

        Raises:
            RunError: a name that is taken, or an artefact that was begun by another plan.
        """
        path = artefact_path(self._run, self._kind, self._name, force)
        begun = None if force and not self._readable() else self.planned()
        if begun is not None and (other := begun.differences(plan)):
            if not force:
                raise RunError(
                    f"{path} was begun with {', '.join(other)}; go on with the same, give another --name, "
                    "or begin anew with --force"
                )
            begun = None
        if begun is None:
            if force:
                shutil.rmtree(self.path, ignore_errors=True)
            # Shards that begin at the same moment write the same.
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.plan, plan.dump())
        return path

    def _readable(self) -> bool:
        try:
            self.planned()
        except RunError:
            return False
        return True

    def place(self, shard: int, done: int) -> Path:
        """Where a shard has what it has added up when so much was done."""
        return self.path / f"shard-{shard}.{done}"

    def done(self, shard: int = 0) -> int:
        """How much of a shard is saved."""
        return max((int(path.suffix[1:]) for path in self.path.glob(f"shard-{shard}.*")), default=0)

    def due(self) -> bool:
        """Whether it is time to save, so that saving takes a small part of it."""
        return time.monotonic() - self._saved > self._pause

    def save(self, write: Callable[[Path], None], done: int, shard: int = 0) -> None:
        """Keep what a shard has added up, whole; what it had kept before goes once that is done.

        Args:
            write: puts it into a folder.
            done: how much has been; what is kept of so much already is the same, and is left.
            shard: whose it is.
        """
        begun, path = time.monotonic(), self.place(shard, done)
        if not path.exists():
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            write(draft)
            os.rename(draft, path)
        self.drop_before(shard, done)
        self._saved = time.monotonic()
        self._pause = max(SAVE_SECONDS, (self._saved - begun) / SAVE_SHARE)

    def drop_before(self, shard: int, done: int) -> None:
        """Remove what a shard had saved earlier."""
        for path in self.path.glob(f"shard-{shard}.*"):
            if int(path.suffix[1:]) < done:
                shutil.rmtree(path)

    def scratch(self, shard: int) -> Path:
        """A folder for what a shard can't hold in memory; emptied at each start."""
        path = self.path / f"scratch-{shard}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    @contextmanager
    def held(self, what: str, wanted: bool = True) -> Generator[bool]:
        """Keep a shard, or the merge, to one process; yields whether it is this one.

        Args:
            what: is held.
            wanted: whether it is an error that another process has it.

        Raises:
            RunError: where another process has it.
        """
        with (self.path / f"lock-{what.replace(' ', '-')}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if wanted:
                    raise RunError(
                        f"another process is reading {what} of {self._run / self._kind / self._name}; wait for it"
                    ) from None
                yield False
                return
            yield True
