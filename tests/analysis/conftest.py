"""The tiny run of the end-to-end tests, trained once for these."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).parents[1] / "end_to_end"))  # tiny_run.py

from tiny_run import write_file

from vpd.analysis.run import Run
from vpd.face import decompose


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run without evaluation, with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("analysis")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam, which pretrains, needs JAX's default
        run = decompose(write_file(folder, eval=None), steps=20, out_dir=folder / "runs", quiet=True)
    yield run
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
