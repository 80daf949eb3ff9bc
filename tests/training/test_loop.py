"""Which events come when, and what stops the loop."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpd.decomposition import Components, ComponentSet
from vpd.errors import NonFiniteError
from vpd.importance import LayerwiseMLP
from vpd.objective import AdversaryState
from vpd.training.loop import Callbacks, Events, check_finite, check_state, train
from vpd.training.optimizers import Moments
from vpd.training.state import Decomposition, Training, TrainState


def state_at(t: int) -> TrainState:
    empty = Decomposition(ComponentSet({}), LayerwiseMLP({}, "shared_mlp"))
    return TrainState(empty, Training(Moments({}, {}), Moments({}, {}), {}, jnp.asarray(t, jnp.int32)))


class Recorded:
    """A program that only counts, callbacks that only record."""

    def __init__(self, bad_at: int | None = None, stop_at: int | None = None, abandon_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.dispatches: list[int] = []
        self.bad_at, self.stop_at, self.abandon_at = bad_at, stop_at, abandon_at

    def program(self, state: TrainState, n):
        """Up to n steps; the loss of step t is t, or NaN at the bad step, after which it stops."""
        t, n = int(state.training.step), int(n)
        assert n >= 1
        self.dispatches.append(n)
        end = t + n if self.bad_at is None or not t <= self.bad_at < t + n else self.bad_at + 1
        bad = end - 1 == self.bad_at
        logs = {"loss/good": jnp.float32(1.0), "loss/total": jnp.float32(np.nan if bad else end - 1)}
        logs["loss/culprit"] = jnp.float32(np.inf if bad else 0.0)
        return replace(state, training=replace(state.training, step=jnp.asarray(end, jnp.int32))), logs

    def run(self, events: Events, start: int = 0, steps_per_dispatch: int | str = "auto") -> tuple[int, bool]:
        """The last step, and whether the run is done."""

        def log(t: int, logs: dict[str, float]) -> None:
            assert logs["loss/total"] == t
            self.events.append(("log", t))

        def evaluate(state: TrainState) -> bool:
            self.events.append(("evaluate", int(state.training.step)))
            return int(state.training.step) != self.abandon_at

        def progress(t: int, logs: dict[str, float]) -> None:
            self.last = t

        callbacks = Callbacks(
            log=log,
            save=lambda state: self.events.append(("save", int(state.training.step))),
            evaluate=evaluate,
            progress=progress,
            stopped=lambda: self.stop_at is not None and getattr(self, "last", start) >= self.stop_at,
        )
        state, done = train(self.program, state_at(start), events, callbacks, steps_per_dispatch)
        return int(state.training.step), done


def expected(events: Events, start: int = 0) -> list[tuple[str, int]]:
    """One step at a time, in plain words."""
    found = (
        [("evaluate", start)] if events.eval_every and (start % events.eval_every == 0 or start == events.steps) else []
    )
    for t in range(start, events.steps):
        dense = events.dense_every and t < events.dense_until and t % events.dense_every == 0
        if dense or t % events.log_every == 0 or t == events.steps - 1:
            found.append(("log", t))
        last = t + 1 == events.steps
        if last or (events.save_every and (t + 1) % events.save_every == 0):
            found.append(("save", t + 1))
        if events.eval_every and (last or (t + 1) % events.eval_every == 0):
            found.append(("evaluate", t + 1))
    return found


def test_a_small_run_in_full() -> None:
    recorded = Recorded()
    assert recorded.run(Events(7, log_every=3, save_every=2, eval_every=4)) == (7, True)
    assert recorded.events == [
        ("evaluate", 0),
        ("log", 0),
        ("save", 2),
        ("log", 3),
        ("save", 4),
        ("evaluate", 4),
        ("save", 6),
        ("log", 6),
        ("save", 7),
        ("evaluate", 7),
    ]


CADENCES = st.builds(
    Events,
    steps=st.integers(1, 30),
    log_every=st.integers(1, 40),
    dense_every=st.none() | st.integers(1, 4),
    dense_until=st.integers(0, 20),
    save_every=st.none() | st.integers(1, 35),
    eval_every=st.none() | st.integers(1, 35),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(CADENCES, st.integers(0, 30), st.sampled_from(["auto", 1, 2, 7, 1000]))
def test_events_are_those_of_single_steps(events: Events, start: int, steps_per_dispatch: int | str) -> None:
    start = min(start, events.steps)
    recorded = Recorded()
    assert recorded.run(events, start, steps_per_dispatch) == (events.steps, True)
    assert recorded.events == expected(events, start)
    assert sum(recorded.dispatches) == events.steps - start
    if steps_per_dispatch != "auto":
        assert max(recorded.dispatches, default=0) <= steps_per_dispatch


def test_dispatches_reach_from_event_to_event() -> None:
    recorded = Recorded()
    recorded.run(Events(100, log_every=10, save_every=25), steps_per_dispatch=1000)
    assert recorded.dispatches == [1, 10, 10, 4, 6, 10, 9, 1, 10, 10, 4, 6, 10, 9]
    recorded = Recorded()
    recorded.run(Events(100, log_every=50), steps_per_dispatch=20)
    assert recorded.dispatches == [1, 20, 20, 10, 20, 20, 9]


def test_nothing_is_evaluated_where_nothing_is_asked() -> None:
    recorded = Recorded()
    recorded.run(Events(5, log_every=10))
    assert recorded.events == [("log", 0), ("log", 4), ("save", 5)]


@pytest.mark.parametrize("stop_at", [0, 5])
def test_a_stop_flag_ends_between_dispatches(stop_at: int) -> None:
    recorded = Recorded(stop_at=stop_at)
    assert recorded.run(Events(10, log_every=1), steps_per_dispatch=1) == (stop_at, False)
    assert recorded.events == [("log", t) for t in range(stop_at)]


@pytest.mark.parametrize("t", [0, 4, 6])
def test_an_evaluation_that_is_left_ends_the_loop(t: int) -> None:
    """Its state has been saved, at the last step too, where the run is not finished without it."""
    recorded = Recorded(abandon_at=t)
    assert recorded.run(Events(6, log_every=1, save_every=4, eval_every=4)) == (t, False)
    assert recorded.events[-2:] == ([("save", t)] if t else []) + [("evaluate", t)]


def test_a_finished_run_is_not_stopped() -> None:
    assert Recorded(stop_at=3).run(Events(3, log_every=1)) == (3, True)


@pytest.mark.parametrize("steps_per_dispatch", [1, 1000])
def test_a_loss_that_is_not_finite_names_step_and_term(steps_per_dispatch: int) -> None:
    recorded = Recorded(bad_at=5)
    with pytest.raises(NonFiniteError, match=r"step 5 \(culprit\)"):
        recorded.run(Events(20, log_every=10, save_every=3), steps_per_dispatch=steps_per_dispatch)
    assert recorded.events == [("log", 0), ("save", 3)]


@pytest.mark.parametrize("name", ["grad_norm/components", "grad_norm/ci_fn"])
def test_a_gradient_that_is_not_finite(name: str) -> None:
    with pytest.raises(
        NonFiniteError, match=f"gradient is not finite at step 4 .{name.removeprefix('grad_norm/')}"
    ) as e:
        check_finite(4, {"loss/total": 1.0, "grad_norm/components": 1.0, "grad_norm/ci_fn": 1.0, name: np.inf})
    assert e.value.step == 4


def spoilt(part: str) -> TrainState:
    """A state with a NaN in one part."""
    nan, state = {"a": jnp.asarray([0.0, np.nan])}, state_at(7)
    if part == "V and U":
        pieces = Components(jnp.ones((2, 1)), jnp.asarray([[np.inf]]))
        return replace(state, decomposition=replace(state.decomposition, components=ComponentSet({"s": pieces})))
    if part == "the moments":
        return replace(state, training=replace(state.training, ci_fn_optimizer=Moments({}, nan)))
    adversary = AdversaryState(nan, {}, {}, jnp.asarray(0, jnp.int32))
    return replace(state, training=replace(state.training, adversaries={"t": adversary}))


@pytest.mark.parametrize("part", ["V and U", "the moments", "the adversaries"])
def test_no_part_of_a_state_that_is_saved_may_be_poisoned(part: str) -> None:
    check_state(7, state_at(7))
    with pytest.raises(NonFiniteError, match=f"the values of {part} are not finite after 7 updates") as caught:
        check_state(7, spoilt(part))
    assert caught.value.step == 6


def test_a_term_that_rests_is_no_fault() -> None:
    check_finite(3, {"loss/rests": np.nan, "loss/total": 1.0})
    with pytest.raises(NonFiniteError, match="the sum of all terms"):
        check_finite(3, {"loss/a": 1e38, "loss/total": np.inf})


@pytest.mark.parametrize("bad", [False, True])
def test_a_resting_term_is_neither_logged_nor_blamed(bad: bool) -> None:
    """Before its first step a term logs NaN on the device; the error names the one that is to blame."""
    seen: list[set[str]] = []

    def program(state: TrainState, n):
        logs = {"loss/rests": jnp.float32(jnp.nan), "loss/other": jnp.float32(jnp.inf if bad else 1)}
        return state_at(int(state.training.step) + int(n)), logs | {"loss/total": logs["loss/other"]}

    def nothing(*_: object) -> None:
        return None

    callbacks = Callbacks(lambda t, logs: seen.append(set(logs)), nothing, lambda _: True, nothing, lambda: False)
    if bad:
        with pytest.raises(NonFiniteError, match=r"at step 0 \(other\)"):
            train(program, state_at(0), Events(3, 1), callbacks, first_steps={"rests": 2})
    else:
        train(program, state_at(0), Events(3, 1), callbacks, first_steps={"rests": 2})
        assert [("loss/rests" in names) for names in seen] == [False, False, True]
