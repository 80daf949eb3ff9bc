"""Checkpoints of pretraining: ``checkpoints/<step>`` is a folder that a decomposition reads too."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vpd.errors import RunError
from vpd.pretrain.step import PretrainState, first_state
from vpd.run_directory import write_atomically
from vpd.targets import LanguageModel
from vpd.targets.checkpoint import open_path, read_model, save_language_model
from vpd.training.checkpoint import named_leaves

TRAINING = "training.safetensors"


class PretrainCheckpoints:
    """``<step>/{model.safetensors,config.json,training.safetensors}`` of one run, each folder whole or not there."""

    def __init__(self, directory: Path, keep_last: int | None, extra: Mapping[str, object]) -> None:
        """Open the folder.

        Args:
            directory: the run's ``checkpoints`` folder.
            keep_last: how many to keep; None keeps all.
            extra: what ``config.json`` says beside the model's sizes.
        """
        self._directory, self._keep_last, self._extra = directory, keep_last, dict(extra)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdecimal())

    def sweep(self) -> None:
        """Remove what a killed save left; only for the process that holds the run."""
        for draft in self._directory.glob(".*"):
            shutil.rmtree(draft)

    def save(self, state: PretrainState) -> None:
        """Save at the state's own step, then remove what is too old; a step that is saved already is left as it is."""
        step = int(state.step)
        final = self._directory / str(step)
        if final.exists():
            return
        draft = self._directory / f".{step}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        save_language_model(state.model, draft, self._extra)
        moments = {name: np.asarray(leaf) for name, leaf in named_leaves(state.moments).items()}
        write_atomically(draft / TRAINING, save(moments))
        os.rename(draft, final)
        for old in self.steps()[: -self._keep_last] if self._keep_last else []:
            gone = self._directory / f".{old}.{os.getpid()}"
            os.rename(self._directory / str(old), gone)
            shutil.rmtree(gone)

    def load(self, step: int, template: LanguageModel) -> PretrainState:
        """The state at a step; ``template`` has the model's structure, shapes and types.

        Raises:
            RunError: where a file can't be read, or holds another model.
        """
        folder = self._directory / str(step)
        model = read_model(open_path(folder, type(template).__name__), None, "float32")
        if jax.tree.structure(model) != jax.tree.structure(template) or _shapes(model) != _shapes(template):
            raise self._unreadable(folder, "its model has other sizes")
        moments = jax.eval_shape(first_state, template).moments
        try:
            stored = load((folder / TRAINING).read_bytes())
            leaves = [stored[name] for name in named_leaves(moments)]
        except (OSError, SafetensorError, KeyError) as error:
            raise self._unreadable(folder, type(error).__name__) from None
        if [leaf.shape for leaf in leaves] != _shapes(moments):
            raise self._unreadable(folder, "its moments have other sizes")
        own = jax.tree.unflatten(jax.tree.structure(moments), [jnp.asarray(leaf) for leaf in leaves])
        return PretrainState(model, own, jnp.asarray(step, jnp.int32))

    def _unreadable(self, folder: Path, reason: str) -> RunError:
        return RunError(
            f"checkpoint {folder.name} of {self._directory.parent} can't be read as what its config.yaml describes "
            f"({reason}); restore the folder from a copy, or train again"
        )


def _shapes(tree: object) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]
