"""Adversarial parameter decomposition in JAX: take a trained network apart, and look at what was found."""

from importlib.metadata import version

from vpd.analysis.run import Run, open_run
from vpd.config import RunConfig, read_run_file
from vpd.decomposition import SiteMask
from vpd.errors import ConfigError, NonFiniteError, RunError, VpdError
from vpd.face import decompose

__version__ = version("vpd-jax")

__all__ = [
    "ConfigError",
    "NonFiniteError",
    "Run",
    "RunConfig",
    "RunError",
    "SiteMask",
    "VpdError",
    "__version__",
    "decompose",
    "open_run",
    "read_run_file",
]
