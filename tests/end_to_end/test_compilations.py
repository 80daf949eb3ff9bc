"""The training step is compiled once a run, and a second launch finds it in the cache."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from tiny_run import finish, start, write_file

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
