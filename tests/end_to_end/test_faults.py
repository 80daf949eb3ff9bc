"""Disks, clocks and services that fail under a running process: what docs/runs.md says comes of it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_damaged_checkpoints import cut, flip, values
from tiny_run import assert_nothing_half_written, assert_same_run, finish, records, saved_steps, start, write_file

from vpd.run_directory import RunDirectory

pytestmark = pytest.mark.slow

LONG = {"pd__steps": 1500, "eval": None, "cadence": {"train_log_every": 20, "save_every": 50}}


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """The long run without any fault, which also fills the compile cache."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start("train", write_file(folder, **LONG), "--out-dir", folder, "--quiet"))
    assert code == 0, err
    return folder / "tiny"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 16 MiB, which is also reachable under ``kept``."""
    folder, kept = tmp_path / "disk", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=16m", "none", kept)
    except (OSError, subprocess.CalledProcessError) as refused:
        pytest.skip(f"this user can't mount a file system: {refused}")
    mount("--bind", kept, folder)
    yield folder
    for _ in range(3):  # whatever a test has put on top
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
    subprocess.run(["umount", "-l", kept], check=False, capture_output=True)


def fill(run: Path) -> None:
    """No byte is left."""
    with (run.parent / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    with (run.parent / "filler2").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0")
        except OSError:
            pass


def make_room(run: Path) -> None:
    for filler in run.parent.glob("filler*"):
        filler.unlink()


def read_only_checkpoints(run: Path) -> None:
    """A mount over the folder: root may write where permissions forbid it, but not there."""
    mount("--bind", run / "checkpoints", run / "checkpoints")
    mount("-o", "remount,bind,ro", run / "checkpoints")


def writable_checkpoints(run: Path) -> None:
    subprocess.run(["umount", "-l", run / "checkpoints"], check=True)


def lose(run: Path) -> None:
    subprocess.run(["umount", "-l", run.parent], check=True)


def find_again(run: Path) -> None:
    """A save that was under way may end where the lost one had been, below the mount; nothing else is written there."""
    assert {path.name for path in run.glob("*")} <= {"checkpoints"}
    mount("--bind", run.parent.with_name("kept"), run.parent)


FAULTS: list[tuple[str, Callable[[Path], None], Callable[[Path], None], dict[int, str]]] = [
    ("full disk", fill, make_room, {1: "No space left on device", 2: "can't save a checkpoint"}),
    ("read-only checkpoints", read_only_checkpoints, writable_checkpoints, {2: "can't save a checkpoint"}),
    ("lost file system", lose, find_again, {2: "is gone, or another folder is in its place"}),
]


@pytest.mark.parametrize(("fault", "mend", "outcomes"), [pytest.param(*f[1:], id=f[0]) for f in FAULTS])
def test_a_disk_that_fails_while_it_trains(
    fault: Callable[[Path], None],
    mend: Callable[[Path], None],
    outcomes: dict[int, str],
    whole: Path,
    disk: Path,
    tmp_path: Path,
) -> None:
    """One sentence, the documented code, the last good checkpoint kept; mended, it ends as if nothing had been."""
    arguments = ("train", write_file(tmp_path, **LONG), "--out-dir", disk, "--quiet")
    process, run = start(*arguments), disk / "tiny"
    while process.poll() is None and not (run / "checkpoints" / "100").exists():
        time.sleep(0.001)
    fault(run)
    code, out, err = finish(process)
    assert code in outcomes, err
    assert out == "" and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert err.startswith("vpd: ") and outcomes[code] in err
    mend(run)
    print(code, err.strip(), assert_nothing_half_written(run))
    assert 100 in saved_steps(run) and saved_steps(run)[-1] < 1500
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    assert_same_run(whole, run)


def test_a_read_only_directory(whole: Path, disk: Path, tmp_path: Path) -> None:
    """Neither a new run nor one that was stopped begins where nothing can be written, and nothing changes."""
    run = Path(shutil.copytree(whole, disk / "tiny"))
    shutil.rmtree(run / "checkpoints" / "1500")
    RunDirectory(run).update_facts(status="stopped")
    mount("-o", "remount,bind,ro", disk)
    for run_id, code in (("other", 2), ("tiny", 1)):
        file = write_file(tmp_path, **LONG)
        refused = finish(start("train", file, "--out-dir", disk, "--run-id", run_id, "--quiet"))
        assert refused[:2] == (code, ""), refused
        assert len(refused[2].splitlines()) == 1 and "Traceback" not in refused[2], refused
    assert saved_steps(run)[-1] == 1450
    code, _, err = finish(start("evaluate", run))  # reading is no change
    assert code == 0, err


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
@pytest.mark.parametrize("item", ["decomposition", "training"])
def test_a_damaged_file_of_the_newest_checkpoint(
    item: str, damage: Callable[[Path], None], whole: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "tiny"))
    RunDirectory(run).update_facts(status="stopped")
    damage(values(run / "checkpoints" / "1500", item))
    code, out, err = finish(start("train", write_file(tmp_path, **LONG), "--out-dir", tmp_path, "--quiet"))
    assert code == 0 and out.splitlines()[-1] == str(run)
    damaged, going_on = err.splitlines()
    assert "checkpoint 1500" in damaged and "from step 1450" in damaged and "from step 1450" in going_on
    assert (run / "checkpoints" / "1500.damaged").is_dir()
    assert_same_run(whole, run)


CLOCK = """
import time
real, real_ns, mono = time.time, time.time_ns, time.monotonic
began = mono()
time.time = lambda: real() - 3 * 3600 * (mono() - began)
time.time_ns = lambda: real_ns() - int(3 * 3600e9 * (mono() - began))
"""

RAISING = """
class SummaryWriter:
    def __init__(self, *arguments, **named):
        self.count = 0
    def __getattr__(self, name):
        def call(*arguments, **named):
            self.count += 1
            if self.count > 20:
                raise ConnectionResetError("the other side is gone")
        return call
"""


def test_a_clock_that_goes_backwards(whole: Path, tmp_path: Path) -> None:
    """Three hours a second, in a run that is killed in between: times mean nothing, everything else is the same."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    arguments = ("train", write_file(tmp_path, **LONG), "--out-dir", tmp_path, "--quiet")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    process, run = start(*arguments, PYTHONPATH=path), tmp_path / "tiny"
    while process.poll() is None and not (run / "checkpoints" / "100").exists():
        time.sleep(0.001)
    process.kill()
    finish(process)
    assert_nothing_half_written(run)
    code, _, err = finish(start(*arguments, PYTHONPATH=path))
    assert code == 0 and len(err.splitlines()) == 1, err
    assert_same_run(whole, run)
    assert RunDirectory(run).read_facts()["seconds"] > 0


def test_a_sink_that_raises(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "tensorboardX.py").write_text(RAISING)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    file = write_file(tmp_path, **LONG, logging={"tensorboard": True})
    code, _, err = finish(start("train", file, "--out-dir", tmp_path, "--quiet", PYTHONPATH=path))
    assert code == 0
    (said,) = err.splitlines()
    assert "TensorBoard gets no more records (ConnectionResetError: the other side is gone)" in said
    assert records(tmp_path / "tiny") == records(whole)
