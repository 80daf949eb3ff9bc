"""Several runs in one command: seeds and files, what is skipped, what fails, and signals."""

import json
import signal
import time
from pathlib import Path

import pytest
from tiny_run import Vpd, assert_same_run, finish, one_line, start, tree, write_file

from vpd.commands.family import last_step
from vpd.face import decompose
from vpd.run_directory import RunDirectory

# No evaluation: a process of its own has to start and compile for each.
PLAIN: dict[str, object] = {"eval": None, "pd__steps": 20}


def statuses(folder: Path) -> dict[str, object]:
    return {p.name: json.loads((p / "run.json").read_bytes())["status"] for p in sorted(folder.iterdir())}


def test_seeds_are_runs_of_their_own_and_the_same_command_skips_them(tmp_path: Path, vpd: Vpd) -> None:
    file, runs = write_file(tmp_path, pd__seed=3, **PLAIN), tmp_path / "runs"
    arguments = ("train", file, "--out-dir", runs, "--quiet")
    called = vpd(*arguments, "--seeds", 2, "--jobs", 2)
    assert called.code == 0, called.err
    assert called.out.splitlines()[-2:] == [str(runs / "tiny-seed-3"), str(runs / "tiny-seed-4")]
    assert statuses(runs) == {"tiny-seed-3": "finished", "tiny-seed-4": "finished"}
    before = tree(runs)
    again = vpd(*arguments, "--seeds", 2)
    assert again.code == 0 and again.out == called.out
    assert again.err.count("finished already, skipped") == 2
    assert tree(runs) == before


@pytest.mark.slow
def test_a_seed_of_a_family_is_the_run_of_that_seed(tmp_path: Path, vpd: Vpd) -> None:
    file, runs = write_file(tmp_path, pd__seed=3, **PLAIN), tmp_path / "runs"
    assert vpd("train", file, "--out-dir", runs, "--quiet", "--seeds", 2).code == 0
    alone = decompose(file, seed=4, out_dir=tmp_path / "alone", quiet=True)
    assert_same_run(alone.path, runs / "tiny-seed-4")


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others(tmp_path: Path, vpd: Vpd) -> None:
    wild = {"lr_schedule": {"start_val": 1e30}}
    bad = write_file(tmp_path, "bad.yaml", pd__components_optimizer=wild, cadence={"train_log_every": 1}, **PLAIN)
    good = write_file(tmp_path, "good.yaml", **PLAIN)
    called = vpd("train", bad, good, "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 1
    said = one_line(called.err)
    assert "1 of 2 runs failed" in said and "runs/bad: " in said and "StochasticReconLoss" in said
    assert called.out.splitlines()[-1] == str(tmp_path / "runs" / "good")
    assert statuses(tmp_path / "runs") == {"bad": "failed", "good": "finished"}


def test_a_family_is_refused_before_anything_starts(tmp_path: Path, vpd: Vpd) -> None:
    """A seed whose run directory holds another run, and seeds past the last one."""
    file, runs = write_file(tmp_path, **PLAIN), tmp_path / "runs"
    decompose(file, steps=10, seed=1, out_dir=runs, run_id="tiny-seed-1", quiet=True)
    before = tree(runs)
    called = vpd("train", file, "--seeds", 3, "--out-dir", runs, "--quiet")
    assert (called.code, called.out) == (2, "")
    assert "pd.steps" in one_line(called.err)
    called = vpd("train", file, "--seeds", 2, "--seed", 2**32 - 1, "--out-dir", runs, "--quiet")
    assert (called.code, called.out) == (2, "")
    assert "pd.seed" in one_line(called.err)
    called = vpd("train", file, "--seeds", 2, "--out-dir", file, "--quiet")
    assert (called.code, called.out) == (2, "")
    assert tree(runs) == before


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_the_same_command_goes_on(chosen: int, tmp_path: Path, vpd: Vpd) -> None:
    """The first is training and saves, the last has not begun."""
    file, runs = write_file(tmp_path, eval=None, pd__steps=3000, cadence={"train_log_every": 5}), tmp_path / "runs"
    arguments = ("train", file, "--seeds", 2, "--out-dir", runs)
    process = start(*arguments)
    while last_step(runs / "tiny-seed-0") == 0 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(chosen)
    code, out, err = finish(process)
    assert code == 75, err
    assert "Traceback" not in err and "2 of 2 runs unfinished" in err
    assert out.splitlines() == [str(runs / "tiny-seed-0")]
    assert statuses(runs) == {"tiny-seed-0": "stopped"}
    again = vpd(*arguments, "--quiet", "--jobs", 2)
    assert again.code == 0, again.err
    assert statuses(runs) == {"tiny-seed-0": "finished", "tiny-seed-1": "finished"}


@pytest.mark.slow
def test_a_signal_while_processes_start(tmp_path: Path) -> None:
    """Wherever it meets them: no traceback, 75, nothing half-written."""
    file = write_file(tmp_path, **PLAIN)
    for i, seconds in enumerate((1.0, 2.0, 3.0, 4.0, 5.0)):
        process = start("train", file, "--seeds", 2, "--jobs", 2, "--out-dir", tmp_path / f"runs{i}")
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
        assert code in (75, -signal.SIGTERM, 0), err
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_process_that_is_killed_fails_alone(tmp_path: Path) -> None:
    import psutil

    file, runs = write_file(tmp_path, eval=None, pd__steps=3000, cadence={"train_log_every": 5}), tmp_path / "runs"
    process = start("train", file, "--seeds", 2, "--jobs", 1, "--out-dir", runs, "--quiet")
    while last_step(runs / "tiny-seed-0") == 0 and process.poll() is None:
        time.sleep(0.005)
    for child in psutil.Process(process.pid).children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    code, _, err = finish(process)
    assert code == 1
    assert "1 of 2 runs failed" in err and "exit code -9" in err and "Traceback" not in err
    assert RunDirectory(runs / "tiny-seed-1").read_facts()["status"] == "finished"
