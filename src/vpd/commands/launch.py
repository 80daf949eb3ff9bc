"""``vpd launch``: submits a run to SLURM, or starts it on this machine, so that it is started again until it ends."""

import hashlib
import os
import re
import shlex
import socket
from pathlib import Path

import typer

from vpd.commands.train import is_finished, read_source
from vpd.config import RunConfig, dump_run_file
from vpd.config.targets import PythonTarget
from vpd.errors import ConfigError, RunError
from vpd.planning.plan import refuse_idle
from vpd.progress import say
from vpd.run import run_path
from vpd.run_directory import refuse_unwritable, write_atomically
from vpd.submission import (
    INTERPRETER,
    Resources,
    Training,
    minutes_of,
    refuse_missing_library,
    refuse_no_slurm,
    submission_text,
    submit_here,
    submit_to_slurm,
)
from vpd.targets.traced_build import refuse_missing_network

# Beside the run directory: the run file as it was submitted, the logs, and what submitit keeps of its jobs.
FOLDER = ".launch"
_OPTION = re.compile(r"[a-z][a-z-]*")


def launch_command(
    source: Path,
    out_dir: Path | None,
    run_id: str | None,
    time: str,
    nodes: int,
    gpus: int,
    processes: int | None,
    partition: str | None,
    account: str | None,
    name: str | None,
    options: list[str],
    grace: int,
    requeues: int,
    local: bool,
    dry_run: bool,
) -> None:
    """Check a run and submit it; prints the job, where its logs are, and the run directory on the last line.

    Raises:
        ConfigError: a run file or options that can't be used; submitit is missing.
        RunError: a run directory that can't be written, or is finished; no SLURM, or one that refuses.
    """
    refuse_missing_library()
    read = read_source(source, out_dir, run_id, None, None)
    for notice in read.notices:
        say(notice)
    path = run_path(read.config, read.name).absolute()
    config = read.config.model_copy(update={"run_id": path.name, "out_dir": str(path.parent)})
    _refuse_unusable(path, config)
    named = {"partition": partition, "account": account}
    more = {key: value for key, value in named.items() if value is not None} | _more(options)
    per_node = _processes(nodes, gpus, processes)
    resources = Resources(name or path.name, nodes, per_node, gpus, minutes_of(time), grace, requeues, more)
    _refuse_unfit(resources, config, local)
    folder = path.with_name(path.name + FOLDER)
    content = dump_run_file(config)
    # A job that waits in the queue keeps the run file that it was submitted with.
    pinned = folder / f"config-{hashlib.sha256(content.encode()).hexdigest()[:8]}.yaml"
    command = [*INTERPRETER, "-m", "vpd", "train", str(pinned)]
    training = Training(command, resources.all_processes, gpus // per_node, _free_port())
    if dry_run:
        typer.echo(_described(resources, folder, training, local))
    else:
        if not local:
            refuse_no_slurm()
        refuse_unwritable(pinned)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(pinned, content)
        job = (submit_here if local else submit_to_slurm)(training, resources, folder)
        typer.echo(f"{'started as process' if local else 'submitted as job'} {job}")
        typer.echo(f"log: {folder / f'{job}_0_log.err'}")
    typer.echo(str(path))


def _refuse_unusable(path: Path, config: RunConfig) -> None:
    if isinstance(config.target, PythonTarget):
        raise refuse_missing_network(config.target)
    if is_finished(path, config):
        raise RunError(f"{path} is finished already; give it another run_id to train it again")
    if "%" in str(path):
        raise ConfigError(f"out_dir: {path} holds a %, which SLURM reads as the number of a job; choose another one")
    if path.exists() and not os.access(path, os.W_OK):
        raise RunError(f"can't write the run directory {path}; choose another out_dir, or have it made writable")


def _processes(nodes: int, gpus: int, asked: int | None) -> int:
    """Processes of each node: one for each GPU where there is more than one node, else one."""
    processes = asked or (gpus if nodes > 1 and gpus else 1)
    if gpus % processes:
        raise ConfigError(f"--processes: {gpus} GPUs of a node can't be shared evenly by {processes} processes")
    return processes


def _more(options: list[str]) -> dict[str, str]:
    """What ``--slurm KEY=VALUE`` adds."""
    found: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (equals and _OPTION.fullmatch(key) and value.isprintable()):
            raise ConfigError(f"--slurm: {option!r} is not KEY=VALUE with an option of sbatch, as in --slurm qos=high")
        found[key] = value
    return found


def _refuse_unfit(resources: Resources, config: RunConfig, local: bool) -> None:
    if not all(text.isprintable() for text in (resources.name, *resources.more.values())):
        raise ConfigError("--name, --partition, --account: they hold a character that is no text")
    if resources.grace >= 60 * resources.minutes:
        raise ConfigError(f"--grace: {resources.grace} s before its end is before a job of {resources.minutes} minutes")
    if local and resources.nodes > 1:
        raise ConfigError(f"--nodes: --local is this machine alone, and {resources.nodes} nodes were asked for")
    if local and resources.more:
        raise ConfigError(f"--local: SLURM is not asked, so it has no {', '.join(sorted(resources.more))}")
    # Without GPUs what a process sees depends on its machine, so only the processes are counted.
    refuse_idle(config, resources.devices, "--nodes, --gpus" if resources.gpus else "--nodes, --processes")


def _described(resources: Resources, folder: Path, training: Training, local: bool) -> str:
    command = shlex.join(training.command("local" if local else "slurm"))
    where = f"{resources.processes} on this machine" if local else f"{resources.processes} on each of the nodes"
    lines = [f"# each process, {where}:", command, f"# logs and the run file: {folder}"]
    if not local:
        lines += ["# what sbatch gets:", submission_text(resources, folder)]
    return "\n".join(lines)


def _free_port() -> int:
    """A port that nothing listens on at the moment, for processes that meet on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
