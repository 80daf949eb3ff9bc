"""Settings of the whole suite: shapes and types checked, strict dtype promotion, warnings are errors."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling programs that run once, much of it optimising, splitting for threads that two
# workers on two cores have no use for, and fusing by emitters that newer XLA can't do without. XLA_FLAGS= has all back.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

# pydantic checks the configuration itself, and its models use typing.Self, which a function-wise checker can't follow.
ROOMS = (
    "randomness",
    "decomposition",
    "importance",
    "targets",
    "data",
    "objective",
    "training",
    "evaluation",
    "pretrain",
    "analysis",
)
install_import_hook([f"vpd.{room}" for room in ROOMS], "beartype.beartype")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True)
def no_compile_cache_is_left() -> Iterator[None]:
    """What a run in this process keeps of its programs is no other test's: writing them costs more than it spares."""
    yield
    if jax.config.jax_compilation_cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", None)
