"""A submitted process: told of its end by a signal it stops its run, goes back into the queue, and goes on with it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vpd.errors import ConfigError
from vpd.submission import Resources, Training, minutes_of, submission_text, submit_here

ONE = Resources("a-run", nodes=1, processes=1, gpus=0, minutes=5, grace=20, requeues=3)
# Stands for `vpd train`: stops at SIGTERM with 75 and what it has saved, and the second time is done at once.
RUN = """
import os, signal, sys, time
folder = sys.argv[1]
if os.path.exists(folder + "/saved"):
    print("done", *sys.argv[2:], os.environ.get("JAX_LOCAL_DEVICE_IDS"), file=open(folder + "/ended", "a"))
    sys.exit(int(sys.argv[2]))
def stop(*_):
    open(folder + "/saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
open(folder + "/ready", "w").close()
time.sleep(60)
"""


def training(folder: Path, code: int = 0, devices: int = 0) -> Training:
    return Training([sys.executable, "-c", RUN, str(folder), str(code)], 1, devices, 0)


def wait_for(there: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(number: int) -> bool:
    return not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_a_preempted_process_saves_and_is_started_again(tmp_path: Path) -> None:
    controller = int(submit_here(training(tmp_path), ONE, tmp_path / "jobs"))
    wait_for((tmp_path / "ready").exists)
    # Some schedulers tell the tasks of a job, others every process below them.
    for process in psutil.Process(controller).children(recursive=True):
        process.send_signal(signal.SIGUSR2)
    wait_for(lambda: gone(controller))
    assert (tmp_path / "ended").read_text() == "done 0 None\n"
    said = (tmp_path / "jobs" / f"{controller}_0_log.out").read_text()
    assert "Requeued job" in said and "completed successfully" in said


def test_a_failed_run_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "saved").touch()
    controller = int(submit_here(training(tmp_path, code=2), ONE, tmp_path / "jobs"))
    wait_for(lambda: gone(controller))
    assert (tmp_path / "ended").read_text() == "done 2 None\n"
    assert "Traceback" not in (tmp_path / "jobs" / f"{controller}_0_log.err").read_text()


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:01", 91), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190), ("0-0:0:1", 1), ("1-2:3:4", 1564)],
)
def test_times_are_read_as_slurm_reads_them(time: str, minutes: int) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["", "0", "soon", "1:2:3:4", "-5", "1-", "24h"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        minutes_of(time)


def test_what_sbatch_gets(tmp_path: Path) -> None:
    asked = Resources("big", 4, 8, 8, minutes=120, grace=90, requeues=9, more={"partition": "gpu", "qos": "a b"})
    lines = submission_text(asked, tmp_path / "jobs").splitlines()
    wanted = {
        "nodes=4",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=120",
        "signal=USR2@90",
        "requeue",
        "job-name=big",
    }
    assert {f"#SBATCH --{option}" for option in wanted | {"partition=gpu", "qos='a b'"}} <= set(lines)
    assert any(line.startswith("srun ") for line in lines)
    assert os.listdir(tmp_path) == []


def test_processes_are_told_of_each_other(tmp_path: Path) -> None:
    several = Training(["vpd", "train", "file"], 4, 2, 5001)
    assert several.command("slurm", 3) == ["vpd", "train", "file", "--distributed"]
    meeting = ["--coordinator", "127.0.0.1:5001", "--processes", "4", "--process-id", "3"]
    assert several.command("local", 3) == ["vpd", "train", "file", *meeting]
    assert training(tmp_path).command("slurm")[-1] == "0"
