"""Refuses a run file that names a sink whose package is not installed."""

from importlib.util import find_spec

from vpd.config.block import refusal
from vpd.config.run import RunConfig


def refuse_missing_packages(config: RunConfig) -> None:
    """Make sure before any work that every sink named could be opened.

    Raises:
        ConfigError: the first that can't, and the extra to install.
    """
    if config.wandb is not None and not _is_installed("wandb"):
        raise refusal("wandb", *_missing("wandb", "wandb", "wandb: null"))
    if config.logging.tensorboard and not _is_installed("tensorboardX"):
        raise refusal("logging.tensorboard", *_missing("tensorboardX", "tensorboard", "tensorboard: false"))


def _missing(package: str, extra: str, otherwise: str) -> tuple[str, str]:
    return f"the package {package} is not installed", f"pip install 'vpd-jax[{extra}]', or write {otherwise}"


def _is_installed(package: str) -> bool:
    """A folder that only has the name, such as W&B's files in the working directory, has no origin."""
    found = find_spec(package)
    return found is not None and found.origin is not None
