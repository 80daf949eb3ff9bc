"""Submission of a run to a scheduler by the library submitit: what is asked for, and each process that is started."""

import io
import math
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from vpd.errors import ConfigError, RunError
from vpd.signals import STOPPED

# Schedulers tell a job of its end with one of these, which end a process that does not mind them.
PREEMPTION = (signal.SIGUSR1, signal.SIGUSR2)
# As SLURM reads them: minutes, minutes:seconds, hours:minutes:seconds; after days, hours with what may follow them.
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_LOGGING = "SUBMITIT_LOG_LEVEL"
# Not what lies in the working directory under the name of a package.
INTERPRETER = (sys.executable, "-P")
_PYTHON = shlex.join(INTERPRETER)
_DRAFTS = ("*.pkl", ".submission_file_*.sh")


@dataclass(frozen=True)
class Resources:
    """What is asked of the scheduler.

    Attributes:
        name: of the job.
        nodes: how many.
        processes: on each node.
        gpus: on each node, which its processes share evenly.
        minutes: after which the scheduler ends the job.
        grace: seconds before that end, in which a run saves.
        requeues: how often a job that ran out of time goes back into the queue.
        more: any other option of ``sbatch``, without its dashes.
    """

    name: str
    nodes: int
    processes: int
    gpus: int
    minutes: int
    grace: int
    requeues: int
    more: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def all_processes(self) -> int:
        """Of the run."""
        return self.nodes * self.processes

    @property
    def devices(self) -> int:
        """Of the run: GPUs, or without any the processors of its processes, one each."""
        return self.nodes * (self.gpus or self.processes)


def minutes_of(time: str) -> int:
    """A time as SLURM writes it (``90``, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM:SS``) in minutes, rounded up.

    Raises:
        ConfigError: it is none.
    """
    if found := _TIME.fullmatch(time.strip()):
        numbers = [int(part) for part in found["rest"].split(":")]
        if found["days"] is not None:
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        else:
            hours, minutes, seconds = [[0, *numbers, 0], [0, *numbers], numbers][len(numbers) - 1]
        whole = math.ceil(1440 * int(found["days"] or 0) + 60 * hours + minutes + seconds / 60)
        if whole:
            return whole
    raise ConfigError(f"--time: {time!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS, as in --time 24:00:00")


class Training:
    """One process of a submitted run: starts ``vpd train`` as a process of its own, and waits for it.

    submitit pickles it into the folder of the job, by name and with the words and numbers it is given. At the signal
    of the scheduler submitit calls :meth:`checkpoint` in the first process of the job and puts the job back into the
    queue, where the same command goes on with the run.
    """

    def __init__(self, command: Sequence[str], processes: int, devices: int, port: int) -> None:
        """Nothing is started yet.

        Args:
            command: program and arguments.
            processes: of the run.
            devices: GPUs of each process; 0 without any.
            port: on which the processes of one machine meet, where no scheduler tells them of each other.
        """
        self._command, self._processes, self._devices, self._port = list(command), processes, devices, port
        self._child: int | None = None

    def __call__(self) -> int:
        """Train until the run is finished or stopped.

        Returns:
            0; or 75 in a process that is not the first, when the first one was told to stop.

        Raises:
            SystemExit: with the exit code of ``vpd train``, which is then that of the job.
        """
        here = import_module("submitit").JobEnvironment()
        words = self.command(here.cluster, here.global_rank)
        environment = os.environ | self._share(here.local_rank)
        # What a process blocks is blocked in what it starts: the signal is ours to hear.
        self._child = os.posix_spawn(words[0], words, environment, setsigmask=PREEMPTION)
        try:
            code = self._ended()
        except KeyboardInterrupt:
            code = self._stop()
        if code and not (code == STOPPED and here.global_rank):
            raise SystemExit(code)
        return code

    def command(self, cluster: str, number: int = 0) -> list[str]:
        """Program and arguments of one process: SLURM tells it of the others, on one machine the port is known."""
        if self._processes == 1:
            return self._command
        if cluster == "slurm":
            return [*self._command, "--distributed"]
        where = ["--coordinator", f"127.0.0.1:{self._port}", "--processes", str(self._processes)]
        return [*self._command, *where, "--process-id", str(number)]

    def checkpoint(self) -> object:
        """Have the run save and end; what is to be submitted again, or None where it failed."""
        if self._stop() not in (0, STOPPED):
            return None
        again = Training(self._command, self._processes, self._devices, self._port)
        return import_module("submitit").helpers.DelayedSubmission(again)

    __submitit_checkpoint__ = checkpoint  # its name in later versions

    def _share(self, number: int) -> dict[str, str]:
        """The GPUs of this process among those of its node; left alone, JAX takes one each where SLURM starts it."""
        if self._processes == 1 or not self._devices:
            return {}
        first = number * self._devices
        return {"JAX_LOCAL_DEVICE_IDS": ",".join(str(first + i) for i in range(self._devices))}

    def _stop(self) -> int:
        if self._child is None:
            return 0
        try:
            os.kill(self._child, signal.SIGTERM)
        except ProcessLookupError:
            return 0
        return self._ended()

    def _ended(self) -> int:
        """Wait for the child's end: its exit code, 0 where that was taken already."""
        assert self._child is not None
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        except ChildProcessError:
            return 0


def refuse_missing_library() -> None:
    """Make sure that submitit is there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("submitit") is None:
        raise ConfigError("vpd launch: the package submitit is not installed; pip install 'vpd-jax[slurm]'")


def submission_text(resources: Resources, folder: Path) -> str:
    """What :func:`submit_to_slurm` would hand to ``sbatch``; no SLURM is needed and nothing is written."""
    slurm = _submitit().SlurmExecutor
    described = type("Described", (slurm,), {"affinity": classmethod(lambda _: 1)})  # it asks for srun otherwise
    executor = described(folder, max_num_timeout=resources.requeues, python=_PYTHON)
    executor.update_parameters(**_slurm_parameters(resources))
    # The library has no public way to show a submission; these two are what its `submit` writes.
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def refuse_no_slurm() -> None:
    """Make sure that this machine submits to a SLURM cluster.

    Raises:
        RunError: it does not.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise RunError(
            "there is no SLURM here (no sbatch and srun on the PATH); launch from a login node, "
            "look with --dry-run, or train on this machine with --local"
        )


def submit_to_slurm(training: Training, resources: Resources, folder: Path) -> str:
    """Submit a job; logs and what submitit keeps of it go to the folder.

    Returns:
        The number of the job.

    Raises:
        RunError: SLURM refuses.
    """
    executor = _submitit().SlurmExecutor(folder, max_num_timeout=resources.requeues, python=_PYTHON)
    executor.update_parameters(**_slurm_parameters(resources))
    before = _drafts(folder)
    try:
        with redirect_stderr(io.StringIO()):  # the library prints what sbatch says, and raises it
            return str(executor.submit(training).job_id)
    except (RuntimeError, OSError) as error:
        for draft in _drafts(folder) - before:
            draft.unlink()
        said = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise RunError(f"SLURM did not take the job ({said.strip()}); see what it would get with --dry-run") from None


def submit_here(training: Training, resources: Resources, folder: Path) -> str:
    """Start the processes on this machine, under a controller that outlives this process and starts them again.

    Returns:
        The process id of the controller, which is the number of the job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executor = _submitit().LocalExecutor(folder, max_num_timeout=resources.requeues, python=_PYTHON)
    executor.update_parameters(
        timeout_min=resources.minutes,
        tasks_per_node=resources.processes,
        gpus_per_node=resources.gpus,
        signal_delay_s=resources.grace,
    )
    with _detached(folder / "controller.log"), warnings.catch_warnings():
        # That the controller is left running is what is wanted.
        warnings.simplefilter("ignore", ResourceWarning)
        return str(executor.submit(training).job_id)


def _submitit() -> ModuleType:
    """The library, whose import would set up anew the logging of a whole process; in those it starts it may."""
    level = os.environ.get(_LOGGING)
    os.environ[_LOGGING] = "NOCONFIG"
    try:
        return import_module("submitit")
    finally:
        del os.environ[_LOGGING]
        if level is not None:
            os.environ[_LOGGING] = level


def _slurm_parameters(resources: Resources) -> dict[str, object]:
    gpus = {"gpus_per_node": resources.gpus} if resources.gpus else {}
    return {
        "job_name": resources.name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes,
        "signal_delay_s": resources.grace,
        # SLURM itself puts the job back after a node that failed.
        "additional_parameters": {"requeue": True, **resources.more},
        **gpus,
    }


def _drafts(folder: Path) -> set[Path]:
    """What submitit writes before a job has its number."""
    return {path for pattern in _DRAFTS for path in folder.glob(pattern) if not path.is_symlink()}


@contextmanager
def _detached(log: Path) -> Generator[None]:
    """Processes that are started within it keep no terminal or pipe of this one open; what they say goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing, said = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    before = [os.dup(number) for number in (0, 1, 2)]
    try:
        for number, other in enumerate((nothing, said, said)):
            os.dup2(other, number)
        yield
    finally:
        for number, other in enumerate(before):
            os.dup2(other, number)
        for descriptor in (nothing, said, *before):
            os.close(descriptor)
