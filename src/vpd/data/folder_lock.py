"""One process at a time fills a folder."""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from vpd.errors import RunError
from vpd.run_directory import open_lock

LOCK = ".lock"


@contextmanager
def held(folder: Path, wait: bool, done: Callable[[], bool]) -> Generator[bool]:
    """Make a folder and hold it; the lock goes with the process that has it.

    Args:
        folder: is renamed or removed by who holds it, lock and all.
        wait: for another process that holds it; it is refused otherwise.
        done: whether there is nothing left to do, asked after every wait.

    Yields:
        Whether the folder is held; False where another process has done it all.

    Raises:
        RunError: where another process holds it.
    """
    path = folder / LOCK
    while not done():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open_lock(path)
        except FileNotFoundError:  # renamed since it was made
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise RunError(f"another process is writing {folder}; wait for it, or choose another folder") from None
            if _is_still(path, file.fileno()):
                if done():  # between the first question and the lock
                    shutil.rmtree(folder, ignore_errors=True)
                    break
                yield True
                return
    yield False


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
