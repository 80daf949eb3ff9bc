"""The loop around the step: dispatches between events, and callbacks at them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from vpd.errors import NonFiniteError
from vpd.hosts import first_says
from vpd.objective.total import HIDDEN
from vpd.training.state import TrainState
from vpd.training.step import STOPPING, Logs

Program = Callable[[TrainState, Int[Array, ""]], tuple[TrainState, Logs]]

DISPATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Events:
    """When things happen. A record at t is of the step from t to t + 1; saves and evaluations at t follow t updates."""

    steps: int
    log_every: int
    dense_every: int | None = None
    dense_until: int = 0
    save_every: int | None = None
    eval_every: int | None = None

    def logs(self, t: int) -> bool:
        """Whether the step from t to t + 1 is recorded; the last one always is."""
        dense = self.dense_every is not None and t < self.dense_until and t % self.dense_every == 0
        return dense or t % self.log_every == 0 or t == self.steps - 1

    def saves(self, t: int) -> bool:
        """Whether the state after t updates is saved; the last one always is."""
        return t == self.steps or (self.save_every is not None and t > 0 and t % self.save_every == 0)

    def evaluates(self, t: int) -> bool:
        """Whether the state after t updates is evaluated: at 0, then every so many, then at the end."""
        return self.eval_every is not None and (t == self.steps or t % self.eval_every == 0)

    def stretch(self, t: int) -> int:
        """Steps from t to the end of the next one that is recorded, or to the next save or evaluation."""
        u = t
        while not self.logs(u) and not self.saves(u + 1) and not self.evaluates(u + 1):
            u += 1
        return u + 1 - t


@dataclass
class Callbacks:
    """What the loop calls; each gets the number of updates made. ``evaluate`` says whether it came to its end."""

    log: Callable[[int, dict[str, float]], None]
    save: Callable[[TrainState], None]
    evaluate: Callable[[TrainState], bool]
    progress: Callable[[int, dict[str, float]], None]
    stopped: Callable[[], bool]


def train(
    program: Program,
    state: TrainState,
    events: Events,
    callbacks: Callbacks,
    steps_per_dispatch: int | Literal["auto"] = "auto",
    first_steps: Mapping[str, int] | None = None,
) -> tuple[TrainState, bool]:
    """Run the steps that are left.

    At one t, the order is save, then evaluate, so that a resumed run evaluates again what it may not have recorded.

    Args:
        program: up to n steps; donates the state it is given.
        state: to start from; its step counter says where.
        events: when to record, save, evaluate.
        callbacks: what to do then.
        steps_per_dispatch: at most so many steps a call of the program; ``auto`` aims at half a second a call.
        first_steps: where terms become active, by name; before that they are left out of the logs.

    Returns:
        The last state, and whether all steps were made.

    Raises:
        NonFiniteError: a loss, gradient or state that is NaN or infinite, with its step and term.
    """
    t = int(state.training.step)
    if events.evaluates(t):
        check_state(t, state)
        if not callbacks.evaluate(state):
            return state, False
    seconds_per_step: float | None = None
    while t < events.steps:
        if callbacks.stopped():
            check_state(t, state)  # it is saved now
            return state, False
        n = min(events.stretch(t), dispatch_limit(steps_per_dispatch, seconds_per_step))
        start = time.perf_counter()
        state, device_logs = program(state, jnp.asarray(n, jnp.int32))
        values = {name: float(value) for name, value in jax.device_get(device_logs).items()}
        # All processes of a run make as many steps a dispatch.
        seconds_per_step = first_says((time.perf_counter() - start) / n)
        t = int(state.training.step)
        resting = {f"loss/{name}" for name, first in (first_steps or {}).items() if t - 1 < first}
        logs = {name: value for name, value in values.items() if name.removesuffix(f"/{HIDDEN}") not in resting}
        check_finite(t - 1, logs)
        if events.logs(t - 1):
            callbacks.log(t - 1, logs)
        callbacks.progress(t, logs)
        if events.saves(t) or events.evaluates(t):
            check_state(t, state, logs)
        if events.saves(t):
            callbacks.save(state)
        if events.evaluates(t) and not callbacks.evaluate(state):
            return state, False
    return state, True


def dispatch_limit(steps_per_dispatch: int | Literal["auto"], seconds_per_step: float | None) -> int:
    """Steps that a dispatch may make at most."""
    if steps_per_dispatch != "auto":
        return steps_per_dispatch
    # The first dispatch tells how long a step takes.
    return 1 if seconds_per_step is None else max(1, math.floor(DISPATCH_SECONDS / max(seconds_per_step, 1e-6)))


def check_finite(step: int, logs: Mapping[str, float]) -> None:
    """Stop where the total or a gradient is not finite, naming the terms or the groups that are to blame."""
    if not np.isfinite(logs["loss/total"]):
        terms = [name.removeprefix("loss/") for name, value in logs.items() if _is_bad(name, value)]
        blamed = ", ".join(terms) or "the sum of all terms"
        raise NonFiniteError(f"the loss is not finite at step {step} ({blamed})", step, logs)
    groups = [name.removeprefix("grad_norm/") for name in STOPPING if not np.isfinite(logs.get(name, 0.0))]
    if groups:
        raise NonFiniteError(f"the gradient is not finite at step {step} ({', '.join(groups)})", step, logs)


def check_state(updates: int, state: TrainState, logs: Mapping[str, float] | None = None) -> None:
    """Stop before a state that is not finite is saved or evaluated; the last update made it so.

    Args:
        updates: made so far.
        state: after them.
        logs: scalars of the last of them.
    """
    groups = {
        "V and U": state.decomposition.components,
        "the CI function": state.decomposition.ci_fn,
        "the moments": (state.training.components_optimizer, state.training.ci_fn_optimizer),
        "the adversaries": state.training.adversaries,
    }
    bad = [name for name, sound in jax.device_get(_all_finite(groups)).items() if not sound]
    if bad:
        found = f"the values of {' and '.join(bad)} are not finite after {updates} updates"
        raise NonFiniteError(found, max(updates - 1, 0), logs)


@jax.jit
def _all_finite(groups: dict[str, PyTree[Array]]) -> dict[str, Bool[Array, ""]]:
    """Whether each group is; where it lies, since only the answers leave the device."""
    return {
        name: jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)] or [jnp.asarray(True)]))
        for name, tree in groups.items()
    }


def _is_bad(name: str, value: float) -> bool:
    return name.startswith("loss/") and name != "loss/total" and not np.isfinite(value)
