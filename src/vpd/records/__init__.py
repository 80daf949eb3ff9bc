"""Where a training run's records go: ``metrics.jsonl`` always, W&B and TensorBoard where the run file names them."""

from vpd.records.build import open_records
from vpd.records.packages import refuse_missing_packages
from vpd.records.sink import EvalRecord, Sink, TrainRecord

__all__ = ["EvalRecord", "Sink", "TrainRecord", "open_records", "refuse_missing_packages"]
