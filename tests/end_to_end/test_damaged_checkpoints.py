"""Checkpoints that a disk, a copy or a person has damaged: the newest good one is used, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_refusals import threads_may_complain  # noqa: F401  (a fixture)
from tiny_run import Vpd, assert_same_run, finish, one_line, records, saved_steps, start, tree, write_file

from vpd import open_run
from vpd.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("threads_may_complain")

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    """Half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def values(checkpoint: Path, item: str) -> Path:
    """The file with an item's numbers."""
    return max((checkpoint / item / "d").iterdir(), key=lambda p: p.stat().st_size)


DAMAGES: list[tuple[str, Damage]] = [
    ("cut V and U", lambda c: cut(values(c, "decomposition"))),
    ("flipped moments", lambda c: flip(values(c, "training"))),
    ("missing shard", lambda c: values(c, "decomposition").unlink()),
    ("no training", lambda c: shutil.rmtree(c / "training")),
    ("no decomposition", lambda c: shutil.rmtree(c / "decomposition")),
    ("no manifest", lambda c: (c / "_CHECKPOINT_METADATA").unlink()),
    ("nothing", lambda c: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in c.iterdir()]),
]


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The run as if it had been stopped after its last save, where the tiny file's --out-dir puts it."""
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))
    RunDirectory(run).update_facts(status="stopped")
    return run


@pytest.mark.parametrize(
    "damage", [pytest.param(d, id=n, marks=[] if n == "flipped moments" else pytest.mark.slow) for n, d in DAMAGES]
)
def test_going_on_from_the_one_before(damage: Damage, finished: Path, stopped: Path, tmp_path: Path, vpd: Vpd) -> None:
    damage(stopped / "checkpoints" / "60")
    left = tree(stopped / "checkpoints" / "60")
    again = vpd("train", write_file(tmp_path), "--out-dir", tmp_path / "runs", "--quiet")
    assert again.code == 0, again.err
    said = [line for line in again.err.splitlines() if "damaged" in line]
    assert len(said) == 1 and said[0].startswith("vpd: checkpoint 60 of ") and "from step 50" in said[0]
    assert saved_steps(stopped) == [10, 20, 30, 40, 50, 60]
    assert tree(stopped / "checkpoints" / "60.damaged") == left
    assert_same_run(finished, stopped)


def test_readers_use_the_same_one_and_change_nothing(stopped: Path, vpd: Vpd) -> None:
    flip(values(stopped / "checkpoints" / "60", "training"))
    cut(values(stopped / "checkpoints" / "50", "decomposition"))
    before = tree(stopped)
    found = vpd("evaluate", stopped, "--json")
    assert found.code == 0 and json.loads(found.out)["step"] == 40
    said = found.err.splitlines()
    assert len(said) == 2 and all("step 40 is opened" in line for line in said)
    assert open_run(stopped, step=60).step == 60  # what is read of it is good
    refused = vpd("evaluate", stopped, "--step", 50)
    assert (refused.code, refused.out) == (2, "")
    assert "checkpoint 50" in one_line(refused.err) and "damaged" in refused.err
    assert tree(stopped) == before


def test_several_damaged_ones(stopped: Path, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    for step in (30, 40, 60):
        flip(values(stopped / "checkpoints" / str(step), "decomposition"))
    shutil.rmtree(stopped / "checkpoints" / "50" / "decomposition")
    again = vpd("train", stopped, "--quiet")
    assert again.code == 0, again.err
    assert [line.split()[2] for line in again.err.splitlines()[:4]] == ["60", "50", "40", "30"]
    assert "going on with" in again.err.splitlines()[4] and "step 20" in again.err
    assert_same_run(finished, stopped)


@pytest.mark.slow
def test_nothing_else_is_said_in_a_process(stopped: Path) -> None:
    """Reads that were under way when one failed have nothing to say either."""
    cut(values(stopped / "checkpoints" / "60", "decomposition"))
    cut(values(stopped / "checkpoints" / "50", "training"))
    for arguments, lines in ((("evaluate", stopped, "--json"), 2), (("train", stopped, "--quiet"), 3)):
        code, _, err = finish(start(*arguments))
        assert code == 0, err
        assert len(err.splitlines()) == lines, err


def test_none_is_good(stopped: Path, tmp_path: Path, vpd: Vpd) -> None:
    """It is said, and nothing is started anew, then or later."""
    for step in saved_steps(stopped):
        cut(values(stopped / "checkpoints" / str(step), "training"))
    before = tree(stopped)
    for command in (["train", stopped, "--quiet"], ["evaluate", stopped]) * 2:
        refused = vpd(*command)
        assert (refused.code, refused.out) == (2, "")
        assert "no checkpoint" in one_line(refused.err) and "is good" in refused.err
        assert set(tree(stopped)) == set(before)
    for step in saved_steps(stopped):
        (stopped / "checkpoints" / str(step)).rename(stopped / "checkpoints" / f"{step}.damaged")
    refused = vpd("train", stopped, "--quiet")
    assert refused.code == 2 and "60.damaged was left aside" in one_line(refused.err)
    assert records(stopped)


def test_figures_of_steps_that_are_computed_again_are_dropped(stopped: Path, vpd: Vpd) -> None:
    (stopped / "figures" / "55").mkdir()
    shutil.rmtree(stopped / "checkpoints" / "60")
    assert vpd("train", stopped, "--quiet").code == 0
    assert not (stopped / "figures" / "55").exists() and (stopped / "figures" / "60").exists()
