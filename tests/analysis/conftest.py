"""The tiny run of the end-to-end tests and one of a tiny language model, trained once for these."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).parents[1] / "end_to_end"))  # tiny_run.py

from harvests import copied, settings_of
from tiny_language import train_language_run
from tiny_run import write_file

from vpd.analysis.harvest.harvest import harvest
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.run import Run
from vpd.face import decompose


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run without evaluation, with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("analysis")
    with _cache_in(folder):
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam, which pretrains, needs JAX's default
            run = decompose(write_file(folder, eval=None), steps=20, out_dir=folder / "runs", quiet=True)
        yield run


@pytest.fixture(scope="session")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run of a tiny language model of two layers."""
    folder = tmp_path_factory.mktemp("language")
    with _cache_in(folder):
        yield train_language_run(folder)


Harvested = tuple[Run, Settings]


def _harvested(run: Run, folder: Path) -> Harvested:
    """A copy of a run with one harvest, ``default``; tests may add others, and change none."""
    run = copied(run, folder)
    settings = settings_of(run)
    assert harvest(run, settings, quiet=True) == run.path / "harvest" / "default"
    return run, settings


@pytest.fixture(scope="session")
def harvested_toy(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Harvested:
    """The tiny run with a harvest."""
    return _harvested(tiny_run, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def harvested_text(language_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Harvested:
    """The tiny language model's run with a harvest."""
    return _harvested(language_run, tmp_path_factory.mktemp("text"))


@pytest.fixture(params=["harvested_toy", "harvested_text"])
def harvested(request: pytest.FixtureRequest) -> Harvested:
    """Each of the two."""
    return request.getfixturevalue(request.param)


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
