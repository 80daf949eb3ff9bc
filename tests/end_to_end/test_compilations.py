"""The training step is compiled once a run, and a second launch finds it in the cache."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from tiny_run import assert_same_run, finish, start, write_file

from vpd.face import decompose
from vpd.run_directory import RunDirectory


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of the programs that XLA was asked for, whether or not the cache had them."""
    names: list[str] = []

    def listen(event: str, duration: float, **facts: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(facts.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_going_on_compiles_once(finished: Path, tmp_path: Path, compiled: list[str]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "tiny"))
    for step in (30, 40, 50, 60):
        shutil.rmtree(run / "checkpoints" / str(step))
    RunDirectory(run).update_facts(status="stopped")
    again = decompose(write_file(tmp_path), out_dir=tmp_path, quiet=True)
    assert again.step == 60
    assert compiled.count("jit(run_steps)") == 1
    assert compiled.count("jit(accumulate)") == 1  # evaluation


@pytest.mark.slow
def test_starting_compiles_once(tmp_path: Path, compiled: list[str]) -> None:
    decompose(write_file(tmp_path), out_dir=tmp_path, quiet=True)
    assert compiled.count("jit(run_steps)") == 1
    assert compiled.count("jit(accumulate)") == 1


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_the_first_kept(tmp_path: Path, own_cache: Path) -> None:
    file = write_file(tmp_path)

    def kept() -> set[str]:
        return {path.name for path in own_cache.rglob("*-cache")}

    for name in ("a", "b"):
        code, _, err = finish(start("train", file, "--out-dir", tmp_path, "--run-id", name, "--quiet"))
        assert code == 0, err
        if name == "a":
            first = kept()
    assert any("run_steps" in name for name in first)
    assert kept() == first


@pytest.mark.slow
def test_a_launch_says_what_the_cache_has_spared(tmp_path: Path) -> None:
    said = []
    for name in ("a", "b", "c"):
        quiet = ["--quiet"] if name == "c" else []
        arguments = ("train", write_file(tmp_path, eval=None), "--out-dir", tmp_path, "--run-id", name, *quiet)
        code, _, err = finish(start(*arguments, XDG_CACHE_HOME=tmp_path / "cache"))
        assert code == 0, err
        said.append([line for line in err.splitlines() if "was compiled before, which spares" in line])
    assert [len(lines) for lines in said] == [0, 1, 0], said


@pytest.mark.slow
def test_one_cache_for_processes_that_start_at_once_and_after_a_damage(finished: Path, tmp_path: Path) -> None:
    """Three compile the same program into it; then a file of it is cut short, and written anew."""
    arguments = ("train", write_file(tmp_path), "--out-dir", tmp_path, "--quiet", "--run-id")
    cache = tmp_path / "cache"
    for code, _, err in map(finish, [start(*arguments, f"at-once-{i}", XDG_CACHE_HOME=cache) for i in range(3)]):
        assert (code, err) == (0, "")
    (program,) = cache.rglob("jit_run_steps-*-cache")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])
    code, _, err = finish(start(*arguments, "after", XDG_CACHE_HOME=cache))
    assert code == 0 and len(program.read_bytes()) > 0.9 * len(whole)
    assert not [path for path in cache.rglob(".*") if path.is_file() and "cache" in path.name]
    for name in ("at-once-0", "at-once-1", "at-once-2", "after"):
        assert_same_run(finished, tmp_path / name)
