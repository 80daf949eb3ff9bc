"""Checkpoints: two Orbax items a step, what readers load and what only training needs."""

import logging
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from vpd.errors import RunError
from vpd.training.state import Decomposition, TrainState

Tree = TypeVar("Tree")
Leaf = Array | np.ndarray | jax.ShapeDtypeStruct

# Orbax reports every save and restore there.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """``checkpoints/<step>/{decomposition,training}`` of one run."""

    def __init__(self, directory: Path, keep_last: int | None = None, writable: bool = True) -> None:
        """Open the folder; a writer also clears what a killed save left unfinished.

        Args:
            directory: the run's ``checkpoints`` folder.
            keep_last: how many to keep; None keeps all.
            writable: False opens an existing folder without changing anything.
        """
        self._directory = directory.absolute()
        if writable:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                create=True,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            )
        else:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Save at the state's own step; a step that is saved already is left as it is."""
        step = int(state.training.step)
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                decomposition=ocp.args.PyTreeSave(named_leaves(state.decomposition)),  # pyright: ignore[reportCallIssue]
                training=ocp.args.PyTreeSave(named_leaves(state.training)),  # pyright: ignore[reportCallIssue]
            ),
        )
        self._manager.wait_until_finished()

    def load_state(self, step: int, template: TrainState) -> TrainState:
        """The whole state; ``template`` has its structure, shapes and types."""
        return TrainState(
            self.load_decomposition(step, template.decomposition), self._load(step, "training", template.training)
        )

    def load_decomposition(self, step: int, template: Decomposition) -> Decomposition:
        """V, U and the CI function alone."""
        return self._load(step, "decomposition", template)

    def _load(self, step: int, item: str, template: Tree) -> Tree:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in named_leaves(template).items()
        }
        self._check_shapes(step, item, wanted)
        restore = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))  # pyright: ignore[reportCallIssue]
        try:
            leaves = self._manager.restore(step, args=ocp.args.Composite(**{item: restore}))[item]
        except (ValueError, KeyError, OSError) as error:
            raise self._unreadable(step, type(error).__name__) from None
        # Through the host: restored arrays are committed to their device, and programs would be compiled anew for them.
        return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(np.asarray(leaves[n])) for n in wanted])

    def _check_shapes(self, step: int, item: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
        """Compare with what Orbax noted beside the arrays, before any is read."""
        try:
            folder = self._directory / str(step) / item
            stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree  # pyright: ignore[reportArgumentType]  # any path
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise self._unreadable(step, type(error).__name__) from None
        for name, leaf in wanted.items():
            shape = tuple(stored[name].shape) if name in stored else None
            if shape != leaf.shape:
                raise self._unreadable(step, f"{name} is {shape or 'not there'}, and the file means {leaf.shape}")

    def _unreadable(self, step: int, reason: str) -> RunError:
        return RunError(
            f"checkpoint {step} of {self._directory.parent} can't be read as what its config.yaml describes "
            f"({reason}); restore the folder from a copy, or train again"
        )

    def close(self) -> None:
        """Release what Orbax holds."""
        self._manager.close()


def named_leaves(tree: object) -> dict[str, Leaf]:
    """``{path: array}`` of a pytree, in its own order; a path reads ``components.owned.linear1.V``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
