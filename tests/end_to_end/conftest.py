"""A cache of their own for all processes, `vpd` called in this process, and one finished run to look at."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).parents[1] / "config"))  # good_file.py and bad_files.py

from tiny_language_model import make_place
from tiny_run import Vpd, called, write_file


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Targets and compiled programs are kept in a folder of this session."""
    before = os.environ.get("XDG_CACHE_HOME")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def default_promotion() -> Iterator[None]:
    """JAX's default, as users have it; Optax's Adam, which pretrains, needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def vpd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vpd:
    """Call ``vpd`` with arguments, in this process."""
    return partial(called, monkeypatch, capfd)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """The run directory of the tiny file, trained without interruption."""
    from vpd.face import decompose

    folder = tmp_path_factory.mktemp("finished")
    with jax.numpy_dtype_promotion("standard"):
        return decompose(write_file(folder), out_dir=folder / "runs", quiet=True).path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model, a tokenizer and texts."""
    return make_place(tmp_path_factory.mktemp("language"))
