"""TensorBoard event files, by tensorboardX: torch-free, and it can purge what is computed again."""

from importlib import import_module
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vpd.records.naming import drawings, named_scalars
from vpd.records.sink import EvalRecord, TrainRecord

FOLDER = "tensorboard"
FLUSH_SECONDS = 5


class TensorBoard:
    """Writes event files into ``<run directory>/tensorboard``."""

    def __init__(self, run_dir: Path, start: int) -> None:
        """Begin an event file.

        Args:
            run_dir: the run directory.
            start: step that the run goes on from; what earlier event files hold from there on is purged.
        """
        folder = run_dir / FOLDER
        purged = start if folder.exists() else None
        module = import_module("tensorboardX")
        self._writer = module.SummaryWriter(
            logdir=str(folder),
            purge_step=purged,
            flush_secs=FLUSH_SECONDS,
            # The writer names files by the second, and files are read in the order of their names.
            filename_suffix=f".{start:09d}",
        )

    def train(self, record: TrainRecord) -> None:
        """Scalars of a step."""
        for name, value in named_scalars("train", record.values).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()  # a run that is killed keeps what it has recorded

    def evaluation(self, record: EvalRecord) -> None:
        """Scalars of an evaluation."""
        for name, value in named_scalars("eval", record.metrics).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def figures(self, step: int, folder: Path) -> None:
        """Drawings of an evaluation."""
        for drawing in drawings(folder):
            self._writer.add_image(drawing.name, _pixels(drawing.path), step, dataformats="HWC")
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """End the event file."""
        self._writer.close()


def _pixels(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    from matplotlib.image import imread  # which a run without TensorBoard may never draw with

    return np.rint(255 * imread(path)[..., :3]).astype(np.uint8)
