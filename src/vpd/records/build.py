"""From a run file to the sinks it names."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vpd.config.run import RunConfig
from vpd.progress import say
from vpd.records.aside import Aside
from vpd.records.metrics_file import MetricsFile
from vpd.records.sink import EvalRecord, Sink, TrainRecord
from vpd.records.tensorboard import TensorBoard
from vpd.records.weights_and_biases import WeightsAndBiases, wandb_id
from vpd.run_directory import RunDirectory


class Several:
    """Sinks as one, asked in order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """Hand every record to these."""
        self._sinks = sinks

    def train(self, record: TrainRecord) -> None:
        """To each."""
        for sink in self._sinks:
            sink.train(record)

    def evaluation(self, record: EvalRecord) -> None:
        """To each."""
        for sink in self._sinks:
            sink.evaluation(record)

    def figures(self, step: int, folder: Path) -> None:
        """To each."""
        for sink in self._sinks:
            sink.figures(step, folder)

    def close(self, failed: bool) -> None:
        """Close each."""
        for sink in self._sinks:
            sink.close(failed)


def open_records(config: RunConfig, directory: RunDirectory, start: int) -> Sink:
    """``metrics.jsonl``, and beside it what the run file names.

    Args:
        config: of the run, with its ``run_id``.
        directory: the run directory, which this process holds.
        start: step that the run begins at or goes on from.
    """
    others = _named(config, directory, start) if directory.writes else {}
    return Several([MetricsFile(directory), *(Aside(name, open_sink, say) for name, open_sink in others.items())])


def _named(config: RunConfig, directory: RunDirectory, start: int) -> dict[str, Callable[[], Sink]]:
    """How the sinks of a run file are opened, by the names by which they are spoken of."""
    opening: dict[str, Callable[[], Sink]] = {}
    if config.logging.tensorboard:
        opening["TensorBoard"] = lambda: TensorBoard(directory.path, start)
    if config.wandb is not None:
        run_id = wandb_id(directory)
        opening["W&B"] = lambda: WeightsAndBiases(config, run_id, say)
    return opening
