"""Several processes of one run, on one host or many: who is there, what they agree on, and what the first one does."""

import ipaddress
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jax._src.lib import _jax  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]  # see join
from jax.experimental import multihost_utils
from jaxtyping import Array

from vpd.errors import PeerError, RunError, VpdError

Tree = TypeVar("Tree")

# Seconds after which a process that says nothing counts as gone; the others are then ended.
HEARTBEAT = 30
# What a message of the first process to the others may take, in bytes.
MESSAGE = 2048


def join(coordinator: str | None = None, processes: int | None = None, number: int | None = None) -> None:
    """Make this process one of a run's; before anything asks for devices.

    Args:
        coordinator: ``host:port`` of the first process; None takes all three from the scheduler's environment (SLURM,
            Open MPI, Kubernetes, TPU pods), as `jax.distributed.initialize` finds them.
        processes: how many there are.
        number: of this one, from 0.

    Raises:
        RunError: they could not be brought together.
    """
    # On a loopback address nothing outside this machine is to reach the coordinator; on another the others must.
    bind = coordinator if coordinator is not None and _is_loopback(coordinator) else None
    if bind is not None:
        # On CPU each process listens for the others where the machine's name leads; no option of JAX says where.
        _jax.make_gloo_tcp_collectives = partial(_jax.make_gloo_tcp_collectives, hostname="127.0.0.1")
    try:
        jax.distributed.initialize(
            coordinator, processes, number, coordinator_bind_address=bind, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        way = "run under srun or mpirun, or give --coordinator HOST:PORT --processes N --process-id I to each"
        raise RunError(
            f"the processes of the run did not come together ({str(error).splitlines()[0]}); {way}"
        ) from None


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def several() -> bool:
    """Whether the run has more than this process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes the records and speaks for the run."""
    return jax.process_index() == 0


@contextmanager
def lost_peers() -> Generator[None]:
    """Say in one sentence that a collective failed because another process is gone.

    Raises:
        PeerError: it did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not several():
            raise
        said = str(error).splitlines()[0][:200]
        raise PeerError(
            f"another process of the run is gone ({said}); start all of them again: the run goes on from its last save"
        ) from None


def in_any(mine: Callable[[], bool]) -> Callable[[], bool]:
    """Whether it holds in any process; all of them ask together."""
    if not several():
        return mine
    return lambda: bool(np.any(multihost_utils.process_allgather(np.asarray(mine()))))


def first_says(mine: float) -> float:
    """The first process's value; all of them ask together."""
    return float(multihost_utils.broadcast_one_to_all(np.asarray(mine))) if several() else mine


def gathered(tree: Tree) -> Tree:
    """Arrays on the host, whole in every process; all of them ask together."""

    def one(leaf: Array | np.ndarray) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree) if several() else jax.device_get(tree)


def first_does(action: Callable[[], object]) -> None:
    """Do it in the first process, and go on in all of them when it is done.

    Raises:
        VpdError: what the action raised; in the other processes a RunError that says so.
    """
    if not several():
        action()
        return
    failed: VpdError | None = None
    if is_first():
        try:
            action()
        except VpdError as error:
            failed = error
    said = (str(failed) if failed is not None else "").encode()[:MESSAGE]
    message = np.zeros(MESSAGE, np.uint8)
    message[: len(said)] = np.frombuffer(said, np.uint8)
    heard = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))).rstrip(b"\0").decode(errors="replace")
    if failed is not None:
        raise failed
    if heard:
        raise RunError(f"in the first process: {heard}")
