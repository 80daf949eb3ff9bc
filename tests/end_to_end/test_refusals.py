"""The user's mistakes on the command line: exit code 2, one sentence, nothing written."""

import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_files import BAD_FILES
from tiny_run import Vpd, finish, one_line, start, tree, write_file

SLOW_TO_PARSE = ("deep_lists", "deep_lists_unclosed")
CASES = [
    pytest.param(*case, id=case[0], marks=[pytest.mark.slow] if case[0] in SLOW_TO_PARSE else []) for case in BAD_FILES
]


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("name", "content", "key"), CASES)
def test_a_bad_file(name: str, content: bytes, key: str, tmp_path: Path, empty_place: Path, vpd: Vpd) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    called = vpd("train", path, "--out-dir", tmp_path / "runs")
    assert (called.code, called.out) == (2, "")
    assert key in one_line(called.err)
    assert tree(empty_place) == {} and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["binary"])
def test_a_bad_file_in_a_process(name: str, tmp_path: Path) -> None:
    assert_process_refuses(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empty", "misspelt_steps", "deep_lists", "no_target", "resid_mlp", "mesh"])
def test_more_bad_files_in_processes(name: str, tmp_path: Path) -> None:
    assert_process_refuses(name, tmp_path)


def assert_process_refuses(name: str, tmp_path: Path) -> None:
    content, key = {n: (c, k) for n, c, k in BAD_FILES}[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    place = tmp_path / "place"
    place.mkdir()
    code, out, err = finish(start("train", path, cwd=place))
    assert (code, out) == (2, "")
    assert key in one_line(err)
    assert tree(place) == {}


@pytest.mark.parametrize("command", ["train", "config check"])
def test_one_bad_file_among_good_ones_starts_nothing(command: str, tmp_path: Path, empty_place: Path, vpd: Vpd) -> None:
    (tmp_path / "bad.yaml").write_text("pd: {}\n")
    called = vpd(*command.split(), write_file(tmp_path), tmp_path / "bad.yaml")
    assert called.code == 2
    one_line(called.err)
    assert tree(empty_place) == {}


@pytest.mark.parametrize("command", ["train", "config check", "evaluate", "report"])
@pytest.mark.parametrize("kind", ["missing", "empty folder", "junk", "device"])
def test_no_such_thing(command: str, kind: str, tmp_path: Path, empty_place: Path, vpd: Vpd) -> None:
    path = tmp_path / "thing"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "junk":
        path.write_bytes(bytes(range(256)))
    elif kind == "device":
        path = Path("/dev/null")
    before = tree(tmp_path)
    called = vpd(*command.split(), path)
    assert (called.code, called.out) == (2, "")
    assert str(path) in one_line(called.err)
    assert tree(tmp_path) == before and tree(empty_place) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path, vpd: Vpd) -> None:
    path = write_file(tmp_path)
    path.chmod(0)
    called = vpd("train", path)
    assert (called.code, called.out) == (2, "")
    one_line(called.err)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def _values(path: Path) -> None:
    _shorten(max(path.glob("d/*"), key=lambda p: p.stat().st_size))


DAMAGE: list[tuple[str, str, Callable[[Path], object]]] = [
    ("no_run_json", "run.json", Path.unlink),
    ("short_run_json", "run.json", _shorten),
    ("list_run_json", "run.json", lambda p: p.write_text("[]")),
    ("deep_run_json", "run.json", lambda p: p.write_text("[" * 100_000)),
    ("later_schema", "run.json", _replace('"schema_version": 1', '"schema_version": 2')),
    ("no_config", "config.yaml", Path.unlink),
    ("short_config", "config.yaml", _shorten),
    ("more_subcomponents", "config.yaml", _replace("C: 6", "C: 7")),
    ("fewer_subcomponents", "config.yaml", _replace("C: 6", "C: 5")),
    ("other_ci_function", "config.yaml", _replace("- 8", "- 9")),
    ("deeper_ci_function", "config.yaml", _replace("- 8", "- 8\n    - 8")),
    ("no_target", "target.safetensors", Path.unlink),
    ("short_target", "target.safetensors", _shorten),
    ("no_checkpoints", "checkpoints", shutil.rmtree),
    ("short_values", "checkpoints/60/decomposition", _values),
    ("short_manifest", "checkpoints/60/decomposition/manifest.ocdbt", _shorten),
    ("short_metadata", "checkpoints/60/decomposition/_METADATA", _shorten),
    ("short_array_metadata", "checkpoints/60/decomposition/array_metadatas/process_0", _shorten),
    ("empty_checkpoint", "checkpoints/60", lambda p: [shutil.rmtree(d) for d in p.iterdir() if d.is_dir()]),
]


@pytest.fixture
def threads_may_complain() -> Iterator[None]:
    """Reads that Orbax has under way when one of them fails end in threads, after the error was reported."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    yield
    time.sleep(0.2)
    gc.collect()
    sys.unraisablehook = before


@pytest.mark.parametrize(("name", "where", "damage"), DAMAGE, ids=[name for name, _, _ in DAMAGE])
@pytest.mark.usefixtures("threads_may_complain")
def test_a_damaged_run(
    name: str, where: str, damage: Callable[[Path], object], finished: Path, tmp_path: Path, vpd: Vpd
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=lambda d, names: [n for n in names if n in ("10", "20", "30", "40", "50")])
    damage(run / where)
    before = tree(run)
    called = vpd("evaluate", run, "--json")
    assert (called.code, called.out) == (2, "")
    one_line(called.err)
    assert tree(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["more_subcomponents", "short_values"])
def test_a_damaged_run_in_a_process(name: str, finished: Path, tmp_path: Path) -> None:
    where, damage = {n: (w, d) for n, w, d in DAMAGE}[name]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    damage(run / where)
    for _ in range(3):  # threads of the reader may outlive it and complain
        code, out, err = finish(start("evaluate", run))
        assert (code, out) == (2, "")
        one_line(err)


def test_a_checkpoint_that_is_not_there(finished: Path, vpd: Vpd) -> None:
    called = vpd("evaluate", finished, "--step", 59)
    assert (called.code, called.out) == (2, "")
    assert "60" in one_line(called.err)


@pytest.mark.parametrize(
    "line", [b"{", *(pytest.param(line, marks=pytest.mark.slow) for line in (b"[]", b"\xff", b'{"kind": "train"}'))]
)
def test_going_on_over_a_damaged_record(line: bytes, finished: Path, tmp_path: Path, vpd: Vpd) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished, run)
    _replace('"finished"', '"running"')(run / "run.json")
    _replace(str(finished.parent), str(run.parent))(run / "config.yaml")
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(line + b"\n" + metrics.read_bytes())
    called = vpd("train", run)
    if called.code != 0:
        assert called.code == 2
        one_line(called.err)
