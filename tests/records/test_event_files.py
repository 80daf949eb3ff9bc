"""TensorBoard's own reader finds in the event files what was recorded, once a resumed run has purged the rest."""

from pathlib import Path

import pytest

from vpd.records.sink import EvalRecord, TrainRecord
from vpd.records.tensorboard import TensorBoard

pytest.importorskip("tensorboardX")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_a_resumed_run_reads_as_one(tmp_path: Path) -> None:
    for start, stop, value in ((0, 8, 1.0), (5, 10, 2.0)):
        sink = TensorBoard(tmp_path, start)
        for step in range(start, stop):
            sink.train(TrainRecord(step, {"loss/total": value}, 0.0))
        sink.evaluation(EvalRecord(stop, {"CI_L0/a": value}, [], 0.0))
        sink.close(False)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss/total")]
    assert found == [(step, 1.0 if step < 5 else 2.0) for step in range(10)]
    assert [(event.step, event.value) for event in events.Scalars("eval/CI_L0/a")] == [(10, 2.0)]
