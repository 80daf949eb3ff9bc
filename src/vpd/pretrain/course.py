"""The course of a pretraining run: updates, and what is recorded, saved, evaluated and written between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from vpd.data.feed import Reader
from vpd.errors import NonFiniteError
from vpd.pretrain.checkpoint import PretrainCheckpoints
from vpd.pretrain.plan import Plan
from vpd.pretrain.samples import continuations
from vpd.pretrain.step import Logs, PretrainState, mean_loss
from vpd.progress import Meter
from vpd.run_directory import RunDirectory
from vpd.targets.checkpoint import save_language_model
from vpd.training.loop import Events

Program = Callable[[PretrainState, jax.Array | None], tuple[PretrainState, Logs]]


def events_of(plan: Plan) -> Events:
    """When a run records, saves and evaluates."""
    config = plan.config
    dense = config.cadence.dense_log_phase
    return Events(
        steps=config.steps,
        log_every=config.cadence.train_log_every,
        dense_every=dense.every if dense else None,
        dense_until=dense.until_step if dense else 0,
        save_every=config.cadence.save_every,
        eval_every=config.eval.every if config.eval else None,
    )


@dataclass
class Course:
    """Runs the updates that are left.

    Attributes:
        plan: what to train.
        directory: where to write.
        checkpoints: of the run.
        program: one update.
        meter: told how far it is.
        validation: the last evaluation, in nats a token.
    """

    plan: Plan
    directory: RunDirectory
    checkpoints: PretrainCheckpoints
    program: Program
    meter: Meter
    validation: float | None = None
    _began: float = field(default_factory=time.monotonic)
    _mark: float = field(default_factory=time.monotonic)
    _counted: int = 0

    def __post_init__(self) -> None:
        """Compile lazily what evaluation needs."""
        self._events = events_of(self.plan)
        self._loss = jax.jit(mean_loss)

    def run(self, state: PretrainState, reader: Reader, stopped: Callable[[], bool]) -> tuple[PretrainState, bool]:
        """Train to the end, or until a signal; at one t the order is save, evaluate, write samples.

        Args:
            state: to start from, which is given away.
            reader: of the batches from its step on.
            stopped: whether a signal has come.

        Returns:
            The last state, and whether all updates were made.

        Raises:
            NonFiniteError: a loss or gradient that is NaN or infinite.
        """
        t = int(state.step)
        self._look(t, state)
        waiting: tuple[int, Logs] | None = None
        self._restart_clock()
        while t < self._events.steps and not stopped():
            state, logs = self.program(state, reader.take(1))
            # One behind, so that the device need not wait for the host.
            if waiting is not None:
                self._settle(*waiting)
            waiting = (t, logs)
            t += 1
            if self._happens(t):
                self._settle(*waiting)
                waiting = None
                self._happen(t, state)
        if waiting is not None:
            self._settle(*waiting)
        return state, t == self._events.steps

    def _happens(self, t: int) -> bool:
        return self._events.saves(t) or self._events.evaluates(t) or self._samples(t)

    def _happen(self, t: int, state: PretrainState) -> None:
        if self._events.saves(t):
            self.checkpoints.save(state)
        self._look(t, state)
        self._restart_clock()

    def _look(self, t: int, state: PretrainState) -> None:
        """Evaluate, publish the weights and write samples, where it is time."""
        if self._events.evaluates(t):
            self._evaluate(t, state)
        if self._events.evaluates(t) or t == self._events.steps:
            save_language_model(state.model, self.directory.path, self.plan.extra)
        if self._samples(t):
            self._write_samples(t, state)

    def _samples(self, t: int) -> bool:
        samples = self.plan.config.samples
        return samples is not None and t > 0 and (t % samples.every == 0 or t == self._events.steps)

    def _settle(self, step: int, logs: Logs) -> None:
        """Look at what an update said, and record it where it is time."""
        values = {name: float(value) for name, value in jax.device_get(logs).items()}
        self._counted += 1
        check_finite(step, values)
        if self._events.logs(step):
            self._record(step, values)
        validation = {} if self.validation is None else {"loss/validation": self.validation}
        self.meter(step + 1, {"loss": values["loss/train"], **validation})

    def _record(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        rate = self._counted * self.plan.tokens_per_step / max(now - self._mark, 1e-9)
        more = {"lr": self.plan.rule.lr.on_host(step, self.plan.rule.steps), "tokens_per_second": round(rate, 1)}
        self.directory.append_record({"kind": "train", "step": step, **values, **more, "time": self._time()})
        self._restart_clock()

    def _evaluate(self, t: int, state: PretrainState) -> None:
        rows, settings = self.plan.evaluated, self.plan.config.eval
        assert rows is not None and settings is not None
        batches = np.split(rows, len(rows) // settings.batch_size)
        losses = [float(self._loss(state.model, jnp.asarray(batch))) for batch in batches]
        self.validation = float(np.mean(losses))
        metrics = {"loss": self.validation}
        self.directory.append_record({"kind": "eval", "step": t, "metrics": metrics, "time": self._time()})

    def _write_samples(self, t: int, state: PretrainState) -> None:
        plan, samples = self.plan, self.plan.config.samples
        assert samples is not None
        seed = plan.config.seed
        written = continuations(state.model, plan.prompts, samples.length, samples.temperature, seed, t)
        texts = [
            {"prompt": plan.text(prompt), "text": plan.text(ids)}
            for prompt, ids in zip(plan.prompts, written, strict=True)
        ]
        self.directory.append_record({"kind": "samples", "step": t, "samples": texts, "time": self._time()})

    def _restart_clock(self) -> None:
        self._mark, self._counted = time.monotonic(), 0

    def _time(self) -> float:
        return round(time.monotonic() - self._began, 3)


def check_finite(step: int, values: dict[str, float]) -> None:
    """Stop before parameters that are not finite are saved.

    Raises:
        NonFiniteError: a loss or gradient norm that is NaN or infinite.
    """
    for name, what in (("loss/train", "loss"), ("grad_norm", "gradient")):
        if not np.isfinite(values[name]):
            raise NonFiniteError(
                f"the {what} is not finite at step {step}",
                advice="lower the learning rate or clip the gradient, and start again from the last checkpoint",
            )
