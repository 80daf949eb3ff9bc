"""Two processes of one run: one outcome, one stop, and what is left when one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any  # records are nested anything

import pytest
from tiny_language_model import written
from tiny_run import Vpd, finish, saved_steps, start, write_file

pytestmark = [pytest.mark.devices, pytest.mark.slow]
TWO_DEVICES = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
# Sums are taken in another order.
SAME = 1e-4


def start_both(file: Path, runs: Path) -> list["subprocess.Popen[str]"]:
    """Two processes with two devices each, the first one first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ("train", file, "--out-dir", runs, "--coordinator", address, "--processes", 2, "--process-id")
    return [start(*common, number, XLA_FLAGS=TWO_DEVICES) for number in (0, 1)]


def wait_for_save(runs: Path, both: list["subprocess.Popen[str]"]) -> None:
    deadline = time.monotonic() + 240
    while not saved_steps(runs / "tiny"):
        assert all(process.poll() is None for process in both) and time.monotonic() < deadline
        time.sleep(0.1)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_signal_to_one_stops_both_and_they_go_on(tmp_path: Path, vpd: Vpd) -> None:
    file, runs = write_file(tmp_path, pd__steps=600, cadence__train_log_every=200, eval__every=600), tmp_path / "runs"
    file.write_text(file.read_text().replace("slow_every: 40", "slow_every: 600"))
    both = start_both(file, runs)
    wait_for_save(runs, both)
    both[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert json.loads((runs / "tiny" / "run.json").read_text())["status"] == "stopped"
    ends = [finish(process) for process in start_both(file, runs)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1].splitlines()[-1] == str(runs / "tiny") and str(runs) not in ends[1][1]
    assert vpd("train", file, "--out-dir", tmp_path / "alone").code == 0
    ours, alone = records(runs / "tiny"), records(tmp_path / "alone" / "tiny")
    assert [(r["kind"], r["step"]) for r in ours] == [(r["kind"], r["step"]) for r in alone]
    losses = [[r["losses"] for r in of if r["kind"] == "train"] for of in (ours, alone)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=SAME)


def test_each_process_reads_its_rows_of_a_text(place: Path, tmp_path: Path, vpd: Vpd) -> None:
    file, runs = written(place, tmp_path), tmp_path / "runs"
    ends = [finish(process) for process in start_both(file, runs)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert vpd("train", file, "--out-dir", tmp_path / "alone", "--quiet").code == 0
    for ours, alone in zip(records(runs / "lm"), records(tmp_path / "alone" / "lm"), strict=True):
        assert ours["step"] == alone["step"]
        assert ours.get("losses") == (alone.get("losses") and pytest.approx(alone["losses"], rel=SAME, nan_ok=True))


def test_when_one_is_killed_the_other_ends_and_nothing_is_lost(tmp_path: Path, vpd: Vpd) -> None:
    file, runs = write_file(tmp_path, pd__steps=600, eval=None), tmp_path / "runs"
    both = start_both(file, runs)
    wait_for_save(runs, both)
    both[1].kill()
    began = time.monotonic()
    code, _, _ = finish(both[0])
    assert code not in (0, 2, 75) and time.monotonic() - began < 120
    saved = saved_steps(runs / "tiny")
    called = vpd("train", file, "--out-dir", runs)
    assert called.code == 0 and f"from step {saved[-1]}" in called.err
