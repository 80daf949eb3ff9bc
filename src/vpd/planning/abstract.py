"""From a run file to an experiment of shapes alone: no weights, no data, nothing on a device."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from vpd.config.run import RunConfig
from vpd.config.targets import LMTarget, PythonTarget, StoredTarget, TokenData
from vpd.data.feed import HostBatches, shape_given
from vpd.errors import ConfigError, RunError
from vpd.experiment import AnyTarget, Experiment, build
from vpd.targets.build import fresh_target, load_stored
from vpd.targets.checkpoint import abstract_language_model
from vpd.targets.checkpoint.at_hand import config_at_hand
from vpd.targets.checkpoint.sizes import Values

Compute = Literal["auto", "float32", "bfloat16"]
# Beside the run file NAME.yaml: what config.json says of its target, where the weights are somewhere else.
BESIDE = ".config.json"


@dataclass(frozen=True)
class NoRows:
    """Batches that nobody reads, of the right shape."""

    shape: tuple[int, int]

    def __getitem__(self, step: int) -> Int32[np.ndarray, "B T"]:
        """One batch; its pages are never touched."""
        return np.zeros(self.shape, np.int32)

    def from_step(self, step: int) -> Generator[Int32[np.ndarray, "B T"]]:
        """The same batch for ever."""
        while True:
            yield self[step]

    def between(self, first: int, end: int) -> "NoRows":
        """Batches of so many rows."""
        return NoRows((end - first, self.shape[1]))


def for_accelerators(config: RunConfig, compute: Compute = "auto") -> RunConfig:
    """The same run as accelerators compute it, and without what makes no difference to its training program.

    Args:
        config: the run file.
        compute: in place of ``runtime.autocast_bf16``, of which null is bfloat16 on accelerators.
    """
    bfloat16 = config.runtime.autocast_bf16 is not False if compute == "auto" else compute == "bfloat16"
    runtime = config.runtime.model_copy(update={"autocast_bf16": bfloat16})
    # Singular values would have to be computed; the shapes of V and U are the same either way.
    pd = config.pd.model_copy(update={"initialization": "normal"})
    return config.model_copy(update={"runtime": runtime, "pd": pd, "eval": None})


def abstract_target(config: RunConfig, source: Path | None, sizes: Path | None) -> tuple[AnyTarget, str]:
    """The network of a run file as shapes and types, and where its sizes are from.

    Args:
        config: the run file.
        source: where it was read from; ``NAME.config.json`` beside ``NAME.yaml`` says the sizes of a language model
            whose weights are not at hand.
        sizes: a ``config.json`` that says them, before anything else.

    Raises:
        RunError: where nothing says the sizes, or a file of them can't be used.
        ConfigError: sizes that were given for a target that is no language model; a target that exists in Python alone.
    """
    block = config.target
    if isinstance(block, LMTarget):
        values, named, where = _values(block, source, sizes)
        return abstract_language_model(values, named, block.weights_dtype, where), where
    if sizes is not None:
        raise ConfigError("--target-config: it gives the sizes of a language model, and this target says its own")
    if isinstance(block, PythonTarget):
        raise ConfigError(
            f"target: {block.name} is a function that was traced in Python, which a run file does not have"
        )
    if isinstance(block, StoredTarget):
        return _shapes(load_stored(block, config.target_kind)), str(block.run_path)
    return jax.eval_shape(partial(fresh_target, block)), "the run file"


def _shapes(target: AnyTarget) -> AnyTarget:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), target)


def _values(block: LMTarget, source: Path | None, sizes: Path | None) -> tuple[Values, str | None, str]:
    """What is known of a language model, the class that the run file names, and where from."""
    named = getattr(block.spec, "model_class", None)
    if sizes is not None:
        return _read(sizes), named, str(sizes)
    at_hand = config_at_hand(block.spec)
    if at_hand is not None:
        return at_hand.values, named, at_hand.source
    beside = source.with_suffix(BESIDE) if source is not None else None
    if beside is not None and beside.is_file():
        return _read(beside), named, str(beside)
    place = f", or put it beside the run file as {beside.name}" if beside is not None else ""
    raise RunError(
        f"target.spec: {_name(block)} is not on this machine, and a plan needs its sizes; give the model's config.json "
        f"with --target-config{place}"
    )


def _name(block: LMTarget) -> str:
    spec = block.spec.model_dump()
    return str(spec.get("model_name") or spec.get("run_path") or spec.get("path") or spec.get("name"))


def _read(path: Path) -> Values:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; give the config.json of the target") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read as a config.json ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} is no block of values, as a config.json is")
    return {str(key): value for key, value in values.items()}


def abstract_experiment(config: RunConfig, target: AnyTarget) -> Experiment:
    """The objects of a run on an abstract target; nothing is allocated.

    Args:
        config: from :func:`for_accelerators`.
        target: from :func:`abstract_target`.
    """
    if not isinstance(config.data, TokenData):
        return build(config, target)
    several = config.runtime.steps_per_dispatch
    rows = NoRows((config.pd.batch_size, config.data.max_seq_len))
    return build(config, target, train_batch=HostBatches(rows, 1 if several == "auto" else several))


def batch_template(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Shape and type of a training batch."""
    given = shape_given(experiment.train_batch)
    if given is not None:
        return jax.ShapeDtypeStruct(given[1:], jnp.int32)
    seed, step = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32)
    return jax.eval_shape(experiment.train_batch, seed, step)


def compute_bytes(experiment: Experiment) -> int:
    """Bytes of an activation's entry."""
    return jnp.dtype(experiment.problem.compute_dtype).itemsize
