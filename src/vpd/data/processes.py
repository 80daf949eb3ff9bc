"""Work in several processes, which end with this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection

from vpd.errors import RunError, VpdError

Work = Callable[..., Iterator[int]]


def in_processes(work: Work, calls: Sequence[tuple[object, ...]], made: Callable[[int], None]) -> None:
    """Call a function in one process per tuple of arguments.

    Args:
        work: of a module, so that a fresh process finds it; yields how much it has done since it last did.
        calls: arguments, one tuple a process.
        made: told each number that is yielded.

    Raises:
        VpdError: what one of them raised; the others are stopped.
        RunError: where one of them was killed.
    """
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in calls]
    processes = [
        context.Process(target=_child, args=(there, work, arguments), daemon=True)
        for (_, there), arguments in zip(ends, calls, strict=True)
    ]
    try:
        for process, (_, there) in zip(processes, ends, strict=True):
            process.start()
            there.close()
        open_ends = [here for here, _ in ends]
        while open_ends:
            for end in connection.wait(open_ends):
                assert isinstance(end, Connection)
                if not _heard(end, made):
                    open_ends.remove(end)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _heard(end: Connection, made: Callable[[int], None]) -> bool:
    """Take one message; False after the last."""
    try:
        message = end.recv()
    except EOFError:
        raise RunError("a process that prepared data was killed; start again with fewer --jobs") from None
    if isinstance(message, VpdError):
        raise message
    if message is not None:
        made(message)
    return message is not None


def _child(end: Connection, work: Work, arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        for size in work(*arguments):
            end.send(size)
        end.send(None)
    except VpdError as error:
        end.send(error)
    except OSError as error:
        end.send(RunError(f"the file system refused: {error.strerror} ({error.filename or 'no file named'})"))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
