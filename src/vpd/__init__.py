"""Adversarial parameter decomposition in JAX: take a trained network apart, and look at what was found."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpd.analysis.clustering.store import Clusters, load_clusters
    from vpd.analysis.editing.edits import Edit
    from vpd.analysis.harvest.reading import Harvest, open_harvest
    from vpd.analysis.run import Run, open_run
    from vpd.config import RunConfig, read_run_file
    from vpd.decomposition import SiteMask
    from vpd.errors import ConfigError, NonFiniteError, RunError, Stopped, TraceError, VpdError
    from vpd.face import decompose
    from vpd.targets.divergence import kl, squared_error
    from vpd.targets.traced import TracedTarget, trace

# Imported at first use: a command that only reads a run file should not wait for JAX.
_HOMES = {
    "Clusters": "vpd.analysis.clustering.store",
    "ConfigError": "vpd.errors",
    "Edit": "vpd.analysis.editing.edits",
    "Harvest": "vpd.analysis.harvest.reading",
    "NonFiniteError": "vpd.errors",
    "Run": "vpd.analysis.run",
    "RunConfig": "vpd.config",
    "RunError": "vpd.errors",
    "SiteMask": "vpd.decomposition",
    "Stopped": "vpd.errors",
    "TraceError": "vpd.errors",
    "TracedTarget": "vpd.targets.traced",
    "VpdError": "vpd.errors",
    "decompose": "vpd.face",
    "kl": "vpd.targets.divergence",
    "load_clusters": "vpd.analysis.clustering.store",
    "open_harvest": "vpd.analysis.harvest.reading",
    "open_run": "vpd.analysis.run",
    "read_run_file": "vpd.config",
    "squared_error": "vpd.targets.divergence",
    "trace": "vpd.targets.traced",
}

__all__ = [
    "Clusters",
    "ConfigError",
    "Edit",
    "Harvest",
    "NonFiniteError",
    "Run",
    "RunConfig",
    "RunError",
    "SiteMask",
    "Stopped",
    "TraceError",
    "TracedTarget",
    "VpdError",
    "decompose",
    "kl",
    "load_clusters",
    "open_harvest",
    "open_run",
    "read_run_file",
    "squared_error",
    "trace",
]


def __getattr__(name: str) -> object:
    """A public name, imported from where it lives; ``__version__`` from the installed distribution."""
    if name == "__version__":
        return import_module("importlib.metadata").version("vpd-jax")
    if name not in _HOMES:
        raise AttributeError(f"module 'vpd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
