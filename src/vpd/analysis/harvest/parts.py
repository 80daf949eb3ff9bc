"""The unfinished parts of a harvest, beside the place where the finished one will be."""

import fcntl
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vpd.analysis.artefacts import artefact_path
from vpd.analysis.harvest.settings import KIND, Settings, read_settings
from vpd.errors import RunError
from vpd.run_directory import write_atomically


class Parts:
    """A folder with the settings of a harvest, and what each of its shards has added up so far."""

    def __init__(self, run: Path, name: str) -> None:
        """Nothing is made yet.

        Args:
            run: the run directory.
            name: of the harvest.
        """
        self.path = run / KIND / f".{name}.parts"
        self._run, self._name = run, name

    @property
    def plan(self) -> Path:
        """The settings."""
        return self.path / "plan.json"

    def settings(self) -> Settings | None:
        """What was begun; None where nothing was."""
        return read_settings(self.plan.read_bytes(), str(self.plan)) if self.plan.is_file() else None

    def begin(self, settings: Settings, force: bool) -> Path:
        """Make sure that the parts are of this harvest.

        Returns:
            Where the finished harvest is to be.

        Raises:
            RunError: a name that is taken, or a harvest that was begun with other settings.
        """
        path = artefact_path(self._run, KIND, self._name, force)
        begun = None if force and not self._readable() else self.settings()
        if begun is not None and (other := begun.differences(settings)):
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
            write_atomically(self.plan, settings.dump())
        return path

    def _readable(self) -> bool:
        try:
            self.settings()
        except RunError:
            return False
        return True

    def place(self, shard: int, batches: int) -> Path:
        """Where a shard saves what it has added up over so many batches."""
        return self.path / f"shard-{shard}.{batches}"

    def done(self, shard: int) -> int:
        """How many batches of a shard are saved."""
        return max((int(path.suffix[1:]) for path in self.path.glob(f"shard-{shard}.*")), default=0)

    def drop_before(self, shard: int, batches: int) -> None:
        """Remove what a shard had saved earlier."""
        for path in self.path.glob(f"shard-{shard}.*"):
            if int(path.suffix[1:]) < batches:
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
                        f"another process is reading {what} of {self._run / KIND / self._name}; wait for it"
                    ) from None
                yield False
                return
            yield True
