"""What a run records: the scalars of its steps, its evaluations, and their figures."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Self

from vpd.config.run import Eval
from vpd.config.targets import TokenData
from vpd.evaluation.accumulate import Pass
from vpd.evaluation.drawer import Drawer
from vpd.evaluation.drawing import beside, plates_of
from vpd.evaluation.language_report import SAMPLES
from vpd.evaluation.suite import Evaluation, Suite
from vpd.experiment import Experiment
from vpd.hosts import gathered, several
from vpd.objective import ReconTerm
from vpd.progress import say
from vpd.records import EvalRecord, Sink, TrainRecord
from vpd.run_directory import RunDirectory
from vpd.training.state import TrainState

SETTLING_SECONDS, STOPPING_SECONDS = 120.0, 5.0  # for figures, at the end of a run, and where a signal has stopped it


class _AbandonedError(Exception):
    """A signal came while the run was evaluated."""


class Recorder:
    """Evaluates, has figures drawn, and hands what there is to record to the sinks, which are closed on leaving."""

    def __init__(
        self, experiment: Experiment, directory: RunDirectory, sink: Sink, stopped: Callable[[], bool]
    ) -> None:
        """Begin, or go on: figures that a killed process has left undrawn are drawn now.

        Args:
            experiment: what is trained.
            directory: of the run, which this process holds.
            sink: takes the records.
            stopped: whether a signal has come, which an evaluation is abandoned for.
        """
        self._experiment, self._directory, self._sink = experiment, directory, sink
        self._suite = _suite(experiment)
        self._stopped = stopped
        self._drawer = Drawer(directory.path / "figures", say, sink.figures)
        if directory.writes:
            self._drawer.go_on()
        self._began = time.monotonic()
        self.last: Evaluation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._drawer.close()
        self._sink.close(failed=kind is not None)

    def settle(self, finished: bool) -> None:
        """Wait for the figures of the last evaluation."""
        self._drawer.settle(SETTLING_SECONDS if finished else STOPPING_SECONDS)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def log(self, step: int, logs: Mapping[str, float]) -> None:
        """Record the scalars of a step."""
        problem = self._experiment.problem
        rates = {
            "lr/components": problem.components_optimizer.lr.on_host(step, problem.steps),
            "lr/ci_fn": problem.ci_fn_optimizer.lr.on_host(step, problem.steps),
        }
        self._sink.train(TrainRecord(step, {**logs, **rates}, self._seconds()))

    def watched(self, logs: Mapping[str, float]) -> dict[str, float]:
        """What a person watches: the loss, the worst of the reconstruction losses, L0 of the last evaluation."""
        recons = [
            logs.get(f"loss/{t.name}", math.nan) for t in self._experiment.problem.terms if isinstance(t, ReconTerm)
        ]
        worst = max((value for value in recons if value == value), default=math.nan)
        return {"loss": logs["loss/total"], "recon": worst, "L0": self.last.l0 if self.last else math.nan}

    def evaluate(self, state: TrainState) -> bool:
        """Record an evaluation; False where a signal came before it was whole, of which nothing is kept then."""
        config = self._experiment.config.eval
        if self._suite is None or config is None:
            return True
        step = int(state.training.step)
        slow = self._is_slow(config, step)
        try:
            found = self._suite.evaluate(state.decomposition, state.training.adversaries, step, slow, self._go_on)
            if slow:
                self._draw(config, self._suite.what, found, state)
        except _AbandonedError:
            return False
        self.last = found
        signs = found.vital_signs
        record = EvalRecord(step, found.metrics, found.verdict, self._seconds(), found.intervals, signs)
        self._sink.evaluation(record)
        return True

    def _go_on(self) -> None:
        if self._stopped():
            raise _AbandonedError

    def _draw(self, config: Eval, what: Pass, found: Evaluation, state: TrainState) -> None:
        samples = self._samples(state)
        self._go_on()
        target, decomposition = self._experiment.target, state.decomposition
        if several():
            target, decomposition = gathered((target, decomposition))
        if self._directory.writes:
            plates = list(plates_of(config.metrics, what, found, target, decomposition))
            self._drawer.draw(found.step, plates, {**beside(config.metrics, found), **samples})

    def _samples(self, state: TrainState) -> dict[str, Mapping[str, object]]:
        """Text under each masking; token ids alone where the tokenizer is not at hand."""
        if self._suite is None or self._suite.writer is None:
            return {}
        data = self._experiment.config.data
        assert isinstance(data, TokenData)
        from vpd.data.text import tokenizer_for  # Arrow, which only text needs

        tokenizer = tokenizer_for(data.tokenizer_name, tokenized=True)
        return {SAMPLES: self._suite.writer.write(state.decomposition).as_record(tokenizer)}

    def _is_slow(self, config: Eval, step: int) -> bool:
        if step == 0:
            return config.slow_on_first_step
        return step % config.slow_every == 0 or step == self._experiment.config.pd.steps


def _suite(experiment: Experiment) -> Suite | None:
    if experiment.eval_batch is None:
        return None
    return Suite(experiment.config, experiment.problem, experiment.target, experiment.eval_batch)
