"""``metrics.jsonl``: the sink that every run has, which the report and every reader go by."""

from pathlib import Path

from vpd.records.sink import EvalRecord, TrainRecord
from vpd.run_directory import RunDirectory


class MetricsFile:
    """Appends records to the run directory; a disk that refuses is an error of the run."""

    def __init__(self, directory: RunDirectory) -> None:
        """Write into this run directory."""
        self._directory = directory

    def train(self, record: TrainRecord) -> None:
        """One line, losses at its top level."""
        line = {"kind": "train", "step": record.step, **record.values, "time": record.seconds}
        self._directory.append_record(line)

    def evaluation(self, record: EvalRecord) -> None:
        """One line, scalars under ``metrics``; intervals and vital signs where there are some."""
        line = {"kind": "eval", "step": record.step, "metrics": record.metrics, "verdict": record.verdict}
        line |= {"intervals": record.intervals} if record.intervals else {}
        line |= {"health": record.health} if record.health else {}
        self._directory.append_record(line | {"time": record.seconds})

    def figures(self, step: int, folder: Path) -> None:
        """They lie in the run directory already."""

    def close(self, failed: bool) -> None:
        """Every line is on its way to the disk already."""
