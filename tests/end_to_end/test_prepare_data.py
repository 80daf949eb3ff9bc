"""`vpd prepare-data` in processes of its own: killed in the middle, the same command gives the same bytes."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tiny_run import finish, start, tree

sys.path.append(str(Path(__file__).parents[1] / "data"))  # texts.py

from texts import documents, write_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen units of a megabyte."""
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(16):
        (folder / f"{k:02d}.txt").write_text("|".join(documents(100, seed=k, words=3400)))
    return folder


def arguments(corpus: Path, tmp_path: Path, folder: str, jobs: int) -> tuple[object, ...]:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    options = ("--length", 64, "--separator", "|", "--jobs", jobs)
    return ("prepare-data", corpus, "-o", tmp_path / folder, "--tokenizer", tokenizer, *options)


def workers_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("chosen", "jobs", "code"),
    [
        (signal.SIGKILL, 1, -9),
        (signal.SIGKILL, 2, -9),
        pytest.param(signal.SIGTERM, 2, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, 75, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle(chosen: signal.Signals, jobs: int, code: int, corpus: Path, tmp_path: Path) -> None:
    process = start(*arguments(corpus, tmp_path, "out", jobs))
    partial, deadline = tmp_path / ".out.partial", time.monotonic() + 120
    while len(list(partial.glob("unit-*.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    workers = workers_of(process.pid)
    process.send_signal(chosen)
    ended, out, err = finish(process)
    assert (ended, out) == (code, "") and "Traceback" not in err
    assert code < 0 or "the same command goes on" in err
    assert not (tmp_path / "out").exists()
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("unit-*.json")}
    assert 3 <= len(done) < 16
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, workers)), "a worker outlives what started it"
    kept = {
        path.name: path.stat().st_mtime_ns for path in partial.glob("train-*") if f"unit-{path.stem[6:]}.json" in done
    }
    for folder in ("out", "undisturbed"):
        ended, out, err = finish(start(*arguments(corpus, tmp_path, folder, 1)))
        assert ended == 0, err
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    assert len(kept) == len(done)
    assert kept == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_killed_worker_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    process = start(*arguments(corpus, tmp_path, "out", 2))
    partial, deadline = tmp_path / ".out.partial", time.monotonic() + 120
    while not list(partial.glob("unit-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    code, out, err = finish(process)
    assert (code, out) == (2, "") and "Traceback" not in err
    assert "was killed; start again with fewer --jobs" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
