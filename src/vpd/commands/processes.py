"""``vpd train`` as one of several processes: what the command line says of them."""

from vpd.errors import ConfigError
from vpd.hosts import join


def join_processes(distributed: bool, coordinator: str | None, processes: int | None, number: int | None) -> None:
    """Become one of a run's processes, before anything asks for devices.

    Args:
        distributed: the scheduler's environment says which.
        coordinator: ``host:port`` of the first one.
        processes: how many.
        number: of this one.

    Raises:
        ConfigError: options that say too little or too much.
        RunError: the processes did not come together.
    """
    given = [coordinator, processes, number]
    if distributed and any(value is not None for value in given):
        raise ConfigError("--distributed takes all from the scheduler; leave --coordinator and what belongs to it out")
    if not distributed and any(value is None for value in given):
        raise ConfigError("--coordinator, --processes and --process-id belong together; give all three")
    if processes is not None and number is not None and number >= processes:
        raise ConfigError(f"--process-id {number} is not among {processes} processes, which are numbered from 0")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"--coordinator {coordinator} names no port; write it as HOST:PORT")
    join(coordinator, processes, number)
