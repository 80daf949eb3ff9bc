"""Checkpoints: two Orbax items a step, what readers load and what only training needs, and how to know a good one."""

import logging
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vpd.errors import RunError
from vpd.hosts import first_does, several
from vpd.training.manifest import DamagedCheckpointError, Leaf, LeafRecord, Manifest, Records, read_manifest
from vpd.training.state import Decomposition, TrainState

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Tree = TypeVar("Tree")

ITEMS = ("decomposition", "training")
ASIDE = ".damaged"

# What Orbax and TensorStore raise where files are missing, cut short or hold something else.
UNREADABLE = (ValueError, KeyError, OSError, TypeError, AttributeError, IndexError)

# Of the reads that are under way when one fails, the others fail too, which asyncio would tell at some later time.
logging.getLogger("asyncio").addFilter(lambda record: "async_deserialize" not in record.getMessage())


@dataclass(frozen=True)
class Found(Generic[Tree]):
    """The newest good checkpoint.

    Attributes:
        step: its step.
        value: what was loaded.
        skipped: what is wrong with the newer ones, newest first, by step.
    """

    step: int
    value: Tree
    skipped: dict[int, str]


class Checkpoints:
    """``checkpoints/<step>/{decomposition,training}`` of one run.

    A checkpoint is good when it is complete and its leaves have the checksums of its manifest; one saved before there
    were manifests, when it can be restored.
    """

    def __init__(self, directory: Path, keep_last: int | None = None, writable: bool = True) -> None:
        """Nothing is opened yet; before its first save a writer clears what a killed one left unfinished.

        Args:
            directory: the run's ``checkpoints`` folder.
            keep_last: how many to keep; None keeps all.
            writable: False opens an existing folder without changing anything.
        """
        self._directory = directory.absolute()
        self._keep_last = keep_last
        self._writable = writable
        self._manager: ocp.CheckpointManager | None = None

    @property
    def _writer(self) -> "ocp.CheckpointManager":
        """Opened by the first save, so that a first step does not wait for it."""
        assert self._writable, "these checkpoints were opened for reading"
        if self._manager is None:
            self._manager = self._open_manager()
        return self._manager

    def _open_manager(self) -> "ocp.CheckpointManager":
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep_last,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> "Checkpoints":
        """These checkpoints; leaving closes them."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish what is being saved; where something else failed already, that alone is reported."""
        with suppress(RunError) if error is not None else nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending, whether good or not."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdecimal())

    def save(self, state: TrainState) -> None:
        """Begin to save at the state's own step, after the save before it; a step that is saved already is left alone.

        The state may be donated as soon as this returns. The checkpoint is there once it is whole: see :meth:`wait`.

        Raises:
            RunError: where it can't be written, or the one before could not.
        """
        self.wait()
        step = int(state.training.step)
        if step in self.steps():
            return
        state = _own_copy(state)
        leaves = {"decomposition": named_leaves(state.decomposition), "training": named_leaves(state.training)}
        ocp = _orbax()
        items = {item: ocp.args.PyTreeSave(tree) for item, tree in leaves.items()}  # pyright: ignore[reportCallIssue]
        manifest = Manifest.of(step, leaves).as_document()
        with self._saving():
            self._writer.save(step, args=ocp.args.Composite(**items), custom_metadata=manifest)

    def check(self) -> None:
        """Go on, unless a save has failed in the background.

        Raises:
            RunError: it has.
        """
        # Several processes wait together, at the next save.
        if self._manager is not None and not several() and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being saved any more; raises as :meth:`check`."""
        if self._manager is not None:
            with self._saving():
                self._manager.wait_until_finished()

    @contextmanager
    def _saving(self) -> Generator[None]:
        """Say in one sentence why a checkpoint can't be written."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
            raise RunError(
                f"can't save a checkpoint in {self._directory} ({reason or type(error).__name__}); "
                "those saved before are kept: make room or mend the folder, and start again"
            ) from None

    def newest(self, load: Callable[[int], Tree]) -> Found[Tree] | None:
        """The newest good checkpoint; None where none was ever finished.

        Args:
            load: reads one and says with :class:`DamagedCheckpointError` that it is not what was saved.

        Raises:
            RunError: there are checkpoints, and none is good.
        """
        skipped: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                return Found(step, load(step), skipped)
            except DamagedCheckpointError as error:
                skipped[step] = error.reason
        aside = sorted(path.name for path in self._directory.glob(f"*{ASIDE}*"))
        if not skipped and not aside:
            return None
        reasons = [f"{step}: {reason}" for step, reason in skipped.items()] + [
            f"{name} was left aside" for name in aside
        ]
        raise RunError(
            f"no checkpoint of {self._directory.parent} is good ({'; '.join(reasons)}); "
            "restore the folder from a copy, or train again under another run_id"
        )

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it is neither counted nor lost; returns its new path."""
        aside, number = self._directory / f"{step}{ASIDE}", 1
        while aside.exists():
            number += 1
            aside = self._directory / f"{step}{ASIDE}-{number}"
        first_does(lambda: os.rename(self._directory / str(step), aside))
        self._writer.reload()
        return aside

    def differences(self, step: int, template: TrainState | Decomposition) -> list[str]:
        """Where a checkpoint holds other arrays than ``template``, by leaf; nothing is loaded.

        Raises:
            DamagedCheckpointError: what it holds can't be told.
        """
        parts: dict[str, object] = (
            {"decomposition": template.decomposition, "training": template.training}
            if isinstance(template, TrainState)
            else {"decomposition": template}
        )
        return [
            difference
            for item, part in parts.items()
            for difference in _differences(_records(part), self._expected(step, item))
        ]

    def load_state(self, step: int, template: TrainState) -> TrainState:
        """The whole state; ``template`` has its structure, shapes and types.

        Raises:
            DamagedCheckpointError: it is not what was saved.
            RunError: it holds another state than ``template``.
        """
        return TrainState(
            self.load_decomposition(step, template.decomposition), self._load(step, "training", template.training)
        )

    def load_decomposition(self, step: int, template: Decomposition) -> Decomposition:
        """V, U and the CI function alone; raises as :meth:`load_state`."""
        return self._load(step, "decomposition", template)

    def load_verified(self, step: int, template: Decomposition) -> Decomposition:
        """V, U and the CI function of a checkpoint all of which is good; raises as :meth:`load_state`."""
        found = self.load_decomposition(step, template)
        self.verify(step, ITEMS[1:])
        return found

    def verify(self, step: int, items: Sequence[str] = ITEMS) -> None:
        """Read a checkpoint and compare its checksums, whatever state it holds.

        Raises:
            DamagedCheckpointError: it is not what was saved.
        """
        for item in items:
            self._restore(step, item, self._expected(step, item))

    def _load(self, step: int, item: str, template: Tree) -> Tree:
        wanted = _records(template)
        expected = self._expected(step, item)
        self._refuse_another(step, wanted, expected)
        leaves = self._restore(step, item, {name: expected[name] for name in wanted})
        return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(leaf) for leaf in leaves.values()])

    def _expected(self, step: int, item: str) -> Records:
        """What the manifest says an item holds; without one, what Orbax noted beside the arrays."""
        folder = self._directory / str(step)
        manifest = read_manifest(folder)
        if manifest is not None:
            return manifest.items.get(item, {})
        with _damage_to(folder, item):
            stored = _orbax().PyTreeCheckpointHandler().metadata(folder / item).tree  # pyright: ignore[reportArgumentType]  # any path
            return {name: LeafRecord(tuple(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in stored.items()}

    def _restore(self, step: int, item: str, expected: Records) -> dict[str, np.ndarray]:
        """Leaves of an item on the host, each with its checksum."""
        folder, device = self._directory / str(step), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype), sharding=device)
            for name, leaf in expected.items()
        }
        ocp = _orbax()
        restore = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))  # pyright: ignore[reportCallIssue]
        with _damage_to(folder, item), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(folder / item, args=restore)
        # Through the host: restored arrays are committed to their device, and programs would be compiled anew for them.
        leaves = {name: np.asarray(restored[name]) for name in wanted}
        for name, leaf in leaves.items():
            if not expected[name].is_of(leaf):
                raise DamagedCheckpointError(folder, f"{item}.{name} has other bytes than were saved")
        return leaves

    def _refuse_another(self, step: int, wanted: Records, stored: Records) -> None:
        """A checkpoint may be good and of another state than the run file means."""
        for difference in _differences(wanted, stored)[:1]:
            raise RunError(
                f"checkpoint {step} of {self._directory.parent} can't be read as what its config.yaml describes "
                f"({difference}); restore the folder from a copy, or train again"
            )

    def close(self) -> None:
        """Finish what is being saved and release what Orbax holds; raises as :meth:`check`."""
        if self._manager is not None:
            try:
                self.wait()
            finally:
                with self._saving():  # closing reports a save that failed once more
                    self._manager.close()


def _orbax():
    """Orbax, which is slow to import: a run whose programs are in the cache has made its first steps by then."""
    import orbax.checkpoint

    # It reports every save and restore there, and failures, which reach whoever waits for them too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return orbax.checkpoint


def hush_late_writes() -> None:
    """Let a process end with the sentence that says why: of the writes under way when one of a save fails, the others
    find the loop closed that asked for them, which is told with a traceback each.
    """
    before = sys.unraisablehook

    def tell(what: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
            before(what)

    sys.unraisablehook = tell


@contextmanager
def _damage_to(folder: Path, item: str) -> Generator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise DamagedCheckpointError(folder, f"{item} can't be read: {type(error).__name__}") from None


def _own_copy(state: TrainState) -> TrainState:
    """What the next dispatch does not write over, to which the state is donated.

    From an accelerator, Orbax takes its copy to the host before it lets go on; a CPU's buffers it would read in place.
    """
    return jax.tree.map(jnp.copy, state) if jax.default_backend() == "cpu" else state


def _records(template: object) -> Records:
    """Shapes and types of a pytree, by path."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
    return {name: LeafRecord.of(leaf) for name, leaf in named_leaves(abstract).items()}


def _differences(wanted: Records, stored: Records) -> list[str]:
    found: list[str] = []
    for name in dict.fromkeys([*wanted, *stored]):
        means = wanted[name].form if name in wanted else "none"
        holds = stored[name].form if name in stored else "not there"
        if means != holds:
            found.append(f"{name} is {holds}, and the run file means {means}")
    return found


def named_leaves(tree: object) -> dict[str, Leaf]:
    """``{path: array}`` of a pytree, in its own order; a path reads ``components.owned.linear1.V``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
