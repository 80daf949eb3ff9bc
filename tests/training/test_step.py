"""The training step as a whole: pure, repeatable, and the same however it is run."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Literal
from objective.scenes import STORED, batch_of, filled, jit, normal, pd_of, tms, uniform

from vpd.decomposition import Site
from vpd.objective import faithfulness_loss
from vpd.targets import TMS, frozen_weights
from vpd.training import warmup
from vpd.training.build import init_state, problem_from
from vpd.training.state import TrainState
from vpd.training.step import Problem, importances, run_steps, step_gradients, train_step
from vpd.training.warmup import faithfulness_warmup

PAIR = (Site("linear1", 4, 3, C=5), Site("linear2", 3, 4, C=5))
TIE = (("linear1", "linear2"),)
ALL_KINDS = [
    {"type": "FaithfulnessLoss", "coeff": 1.0},
    {"type": "ImportanceMinimalityLoss", "coeff": 0.01, "pnorm": 2.0, "beta": 0.5},
    {"type": "StochasticReconSubsetLoss", "coeff": 1.0},
    {"type": "PersistentPGDReconLoss", "coeff": 0.5} | STORED,
]


def problem_of(losses: list[dict], **changes) -> tuple[Problem, TrainState]:
    """A problem on a small tied TMS, and a state without any draw."""
    runtime = {k: changes.pop(k) for k in ("bfloat16", "remat") if k in changes}
    pd = pd_of(losses, **({"n_mask_samples": 1} | changes))
    problem = problem_from(pd, PAIR, False, **runtime)
    shapes = jax.eval_shape(lambda: init_state(problem, pd, TIE, (5,)))
    fresh = filled(lambda _: shapes.decomposition)
    fresh = jax.tree.map(lambda x: x / 2, fresh)
    zero = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), shapes.training)
    adversaries = {
        name: replace(a, sources={s: uniform(*x.shape, key=3) for s, x in a.sources.items()})
        for name, a in zero.adversaries.items()
    }
    return problem, TrainState(fresh, replace(zero, adversaries=adversaries))


def draw(seed: jax.Array, step: jax.Array) -> jax.Array:
    """A batch of each step; seed 9 spoils step 2."""
    x = uniform(5, 4) + 0.1 * jnp.sin(step.astype(jnp.float32) + jnp.arange(20, dtype=jnp.float32).reshape(5, 4))
    return jnp.where((seed == 9) & (step == 2), jnp.nan, x)


def assert_same(got, want, rtol: float = 0.0, atol: float = 0.0) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def compiled():
    """Problem, target, state, one step, and up to n steps."""
    problem, state = problem_of(ALL_KINDS)
    one = one_step(problem)
    many = jit(lambda target, state, n, seed: run_steps(problem, target, state, n, seed, draw))
    return problem, tms(), state, one, many


def test_a_step_is_a_function_of_its_arguments(compiled) -> None:
    _, target, state, one, _ = compiled
    before = jax.tree.map(np.array, state)
    first, logs = one(target, state, np.int32(0))
    assert_same(one(target, state, np.int32(0)), (first, logs))
    assert_same(state, before)
    assert int(first.training.step) == 1
    terms = {f"loss/{loss['type']}" for loss in ALL_KINDS}
    extra = {"loss/total", "loss/ImportanceMinimalityLoss/beta_free", "grad_norm/components", "grad_norm/ci_fn"}
    assert set(logs) == terms | extra and all(np.isfinite(x) for x in logs.values())
    assert one(target, state, np.int32(1))[1]["loss/total"] != logs["loss/total"]
    # Everything that learns has moved, and tied sites own one pair of arrays.
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True):
        assert not np.array_equal(x, y)
    assert list(first.decomposition.components.owned) == ["linear1"]
    assert int(first.training.adversaries["PersistentPGDReconLoss"].ascents) == STORED["n_warmup_steps"] + 1


def test_many_steps_are_steps_one_by_one(compiled) -> None:
    _, target, state, one, many = compiled
    by_hand = state
    for _ in range(3):
        by_hand, logs = one(target, by_hand, np.int32(0))
    assert_same(many(target, state, np.int32(3), np.int32(0)), (by_hand, logs), rtol=1e-5, atol=1e-6)
    split = many(target, many(target, state, np.int32(2), np.int32(0))[0], np.int32(1), np.int32(0))
    assert_same(split, many(target, state, np.int32(3), np.int32(0)))
    # No compile for another number of steps, another target of the same shape, another seed.
    many(TMS(target.linear1 * 2, target.bias), state, np.int32(5), np.int32(4))
    assert many._cache_size() == 1


def test_steps_end_after_a_loss_that_is_not_finite(compiled) -> None:
    _, target, state, _, many = compiled
    after, logs = many(target, state, np.int32(6), np.int32(9))
    assert int(after.training.step) == 3
    assert np.isnan(logs["loss/total"]) and np.isfinite(logs["loss/FaithfulnessLoss"])


def one_step(problem: Problem):
    return jit(lambda target, state, seed: train_step(problem, target, state, draw(seed, state.training.step), seed))


def test_remat_and_bfloat16_change_rounding_only(compiled) -> None:
    problem, target, state, one, _ = compiled
    plain, logs = one(target, state, np.int32(0))
    remat, same = one_step(replace(problem, remat=True))(target, state, np.int32(0))
    assert_same(same, logs, rtol=1e-5)
    assert_same(remat.training, plain.training, rtol=1e-5, atol=1e-6)

    # In bfloat16: near, with masters, moments and faithfulness in float32.
    low, near = one_step(replace(problem, compute_dtype="bfloat16"))(target, state, np.int32(0))
    np.testing.assert_array_equal(near["loss/FaithfulnessLoss"], logs["loss/FaithfulnessLoss"])
    for name, value in logs.items():
        np.testing.assert_allclose(near[name], value, rtol=0.1)
        assert near[name].dtype == jnp.float32
    assert near["loss/StochasticReconSubsetLoss"] != logs["loss/StochasticReconSubsetLoss"]
    for x, y in zip(jax.tree.leaves(low), jax.tree.leaves(plain), strict=True):
        assert x.dtype == y.dtype
    moments = (s.training.components_optimizer.m for s in (low, plain))
    for x, y in zip(*map(jax.tree.leaves, moments), strict=True):
        assert np.linalg.norm(np.asarray(x) - y) < 0.1 * np.linalg.norm(y)


def persistent(coeff: float) -> tuple[Problem, TrainState]:
    return problem_of(
        [
            {"type": "FaithfulnessLoss", "coeff": 2.0},
            {"type": "PersistentPGDReconLoss", "coeff": coeff, "start_frac": 0.5} | STORED,
        ],
        steps=4,
    )


def test_a_persistent_term_rests_until_its_start_and_ascends_unscaled_by_its_coefficient() -> None:
    name, target = "PersistentPGDReconLoss", tms()
    after = {}
    for coeff in (0.5, 2.0):
        problem, state = persistent(coeff)
        run = jit(partial(step_gradients, problem))
        at = {t: replace(state, training=replace(state.training, step=jnp.asarray(t, jnp.int32))) for t in (1, 2)}
        got, logs = run(target, at[1], batch_of(target), np.int32(0))
        assert_same(got.adversaries, state.training.adversaries)
        assert np.isnan(logs[f"loss/{name}"])
        np.testing.assert_allclose(logs["loss/total"], 2 * logs["loss/FaithfulnessLoss"], rtol=1e-6)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(got.ci_fn))
        after[coeff], logs = run(target, at[2], batch_of(target), np.int32(0))
        total = 2 * logs["loss/FaithfulnessLoss"] + coeff * logs[f"loss/{name}"]
        np.testing.assert_allclose(logs["loss/total"], total, rtol=1e-6)
        assert any(np.asarray(x).any() for x in jax.tree.leaves(after[coeff].ci_fn))
    one, two = (after[c].adversaries[name] for c in (0.5, 2.0))
    assert int(one.ascents) == 3
    assert_same((one.sources, one.m), (two.sources, two.m), rtol=1e-5, atol=1e-6)


def test_warm_up_lowers_faithfulness_and_touches_nothing_else() -> None:
    problem, state = problem_of(ALL_KINDS[:1])
    target, batch = tms(), batch_of(tms())
    after = faithfulness_warmup(problem, target, state, batch, 50, 0.02, 0.0)
    weights = frozen_weights(target, batch)
    before, now = (faithfulness_loss(PAIR, weights, s.decomposition.components) for s in (state, after))
    assert now < 0.5 * before
    assert_same((after.training, after.decomposition.ci_fn), (state.training, state.decomposition.ci_fn))
    assert_same(faithfulness_warmup(problem, target, state, batch, 0, 0.02, 0.0), state)


def test_warm_up_in_any_stretches_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, state = problem_of(ALL_KINDS[:1])
    found = {}
    for stretch in (1, 7, 20):
        monkeypatch.setattr(warmup, "dispatch_limit", lambda *_, n=stretch: n)
        made: list[int] = []
        found[stretch] = faithfulness_warmup(problem, tms(), state, batch_of(tms()), 20, 0.02, 0.1, made.append)
        assert made == [*range(stretch, 20, stretch), 20]
    for other in (1, 7):
        jax.tree.map(np.testing.assert_array_equal, found[other].decomposition, found[20].decomposition)


def test_the_frozen_weights_are_arguments_of_the_program() -> None:
    """No constant in the step, at any depth, is as large as a weight."""
    target = TMS(normal(64, 50), normal(64))
    pd = pd_of(ALL_KINDS)
    problem = problem_from(pd, (Site("linear1", 64, 50, C=5), Site("linear2", 50, 64, C=5)), False)
    state = jax.eval_shape(lambda: init_state(problem, pd, TIE, (5,)))
    rest = (state, normal(5, 64), jnp.zeros((), jnp.int32))
    assert largest_constant(jax.make_jaxpr(partial(train_step, problem))(target, *rest)) < 64
    assert largest_constant(jax.make_jaxpr(partial(train_step, problem, target))(*rest)) == 64 * 50


def largest_constant(closed: ClosedJaxpr) -> int:
    """Elements of the largest constant of a program and of those inside it."""
    sizes = [np.size(c) for c in closed.consts]
    for equation in closed.jaxpr.eqns:
        sizes += [np.size(x.val) for x in equation.invars if isinstance(x, Literal)]
        inner = jax.tree.leaves(list(equation.params.values()))
        sizes += [largest_constant(x) for x in inner if isinstance(x, ClosedJaxpr)]
    return max(sizes, default=0)


def test_binomial_importances_are_jittered_by_seed_and_step_alone() -> None:
    problem, state = problem_of(ALL_KINDS[:1], sampling="binomial")
    inputs = {"linear1": uniform(5, 4), "linear2": uniform(5, 3)}
    d = state.decomposition
    run = jit(lambda step, seed: importances(problem, d.ci_fn, d.components, inputs, step, seed))
    first = run(np.int32(0), np.int32(0))
    assert_same(run(np.int32(0), np.int32(0)), first)
    for step, seed in ((1, 0), (0, 1)):
        other = run(np.int32(step), np.int32(seed))
        assert_same(other.upper, first.upper)
        assert any((np.asarray(other.lower[s]) != first.lower[s]).any() for s in inputs)
