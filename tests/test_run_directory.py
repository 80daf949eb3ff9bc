"""The run directory's small files: whole or absent, locked by one process."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpd.errors import RunError
from vpd.run_directory import RunDirectory, create_run_directory, finite, write_atomically


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run that has just been made."""
    return create_run_directory(tmp_path / "runs" / "a", "pd: {}\n", {"status": "running"}, b"weights")


def test_creation(directory: RunDirectory) -> None:
    assert directory.config.read_text() == "pd: {}\n"
    assert directory.target.read_bytes() == b"weights"
    assert directory.read_facts() == {"schema_version": 1, "status": "running"}
    assert sorted(p.name for p in directory.path.iterdir()) == ["config.yaml", "run.json", "target.safetensors"]
    assert [p.name for p in directory.path.parent.iterdir()] == ["a"]


def test_creation_over_another_run(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match="can't write"):
        create_run_directory(directory.path, "other", {}, None)
    assert directory.config.read_text() == "pd: {}\n"
    assert [p.name for p in directory.path.parent.iterdir()] == ["a"]


def test_creation_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="out_dir"):
        create_run_directory(tmp_path / "file" / "a", "", {}, None)


def test_an_interrupted_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(RunError, match="No space left"):
        create_run_directory(tmp_path / "a", "", {}, None)
    assert list(tmp_path.iterdir()) == []


def test_facts_are_replaced_one_by_one(directory: RunDirectory) -> None:
    directory.update_facts(status="stopped", seconds=1.5)
    assert directory.read_facts() == {"schema_version": 1, "status": "stopped", "seconds": 1.5}
    assert directory.facts.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"\xff\xfe",
        b'{"schema_version": 2}',
        b'{"schema_version": "1"}',
        b"[" * 100_000,
    ],
)
def test_facts_that_cannot_be_read(content: bytes, directory: RunDirectory) -> None:
    directory.facts.write_bytes(content)
    with pytest.raises(RunError) as caught:
        directory.read_facts()
    assert str(directory.path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "file", ""])
def test_facts_of_no_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="vpd train"):
        RunDirectory(tmp_path / name).read_facts()


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_are_whole_lines(directory: RunDirectory) -> None:
    directory.append_record({"step": 0, "loss": math.nan, "many": [math.inf, {"deep": -math.inf}], "text": "a\nb"})
    directory.append_record({"step": 1})
    lines = directory.metrics.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 0, "loss": None, "many": [None, {"deep": None}], "text": "a\nb"},
        {"step": 1},
    ]


def test_records_that_are_kept(directory: RunDirectory) -> None:
    for step in range(4):
        directory.append_record({"step": step})
    with directory.metrics.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    directory.keep_records(lambda record: record["step"] != 2)
    directory.append_record({"step": 5})
    assert [json.loads(line)["step"] for line in directory.metrics.read_text().splitlines()] == [0, 1, 3, 5]


def test_records_before_the_first_one(directory: RunDirectory) -> None:
    directory.keep_records(lambda record: True)
    assert not directory.metrics.exists()


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b"null", b"3"])
def test_a_broken_record_in_the_middle_is_named(line: bytes, directory: RunDirectory) -> None:
    directory.append_record({"step": 0})
    with directory.metrics.open("ab") as file:
        file.write(line + b"\n")
    directory.append_record({"step": 1})
    before = directory.metrics.read_bytes()
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        directory.keep_records(lambda record: record.get("step") == 0)
    assert directory.metrics.read_bytes() == before


HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock(directory: RunDirectory) -> None:
    command = [sys.executable, "-c", HOLD, str(directory.path / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process"), directory.locked():
            pass
        other.communicate()
        with directory.locked():
            pass
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize("end", ["normal", "error"])
def test_the_lock_is_given_back(end: str, directory: RunDirectory) -> None:
    if end == "normal":
        with directory.locked():
            pass
    else:
        with pytest.raises(ZeroDivisionError), directory.locked():
            raise ZeroDivisionError
    with directory.locked():
        pass


def test_finite_keeps_everything_else() -> None:
    value = {"a": [1, 2.5, "x", True, None], 3: (0.0, -1e308)}
    assert finite(value) == {"a": [1, 2.5, "x", True, None], "3": [0.0, -1e308]}
