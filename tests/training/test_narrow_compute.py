"""bfloat16 forwards: what is learned and what is summed stays in float32, and losses stay close."""

from functools import partial
from typing import Any  # blocks of a run file are nested anything

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import ADAM
from targets.language_models import simple_mlp

from vpd.config.run import PD
from vpd.decomposition import dense
from vpd.importance import transformer
from vpd.targets import LanguageModel, norms, recorded_forward
from vpd.targets import divergence as divergences
from vpd.training.build import cut_for, init_state, problem_from, sites_from
from vpd.training.step import Problem, cast_compute, importances, train_step

STEPS, BATCH, LENGTH = 50, 8, 8
CI = {
    "mode": "global",
    "fn_type": "global_shared_transformer",
    "simple_transformer_ci_cfg": {"d_model": 16, "n_blocks": 1, "attn_config": {"n_heads": 2, "max_len": LENGTH}},
}
LOSSES: list[dict[str, Any]] = [
    {"type": "FaithfulnessLoss", "coeff": 10.0},
    {"type": "ImportanceMinimalityLoss", "coeff": 1e-2, "pnorm": 2.0, "beta": 0.5}
    | {"p_anneal_start_frac": 0.0, "p_anneal_final_p": 1.0, "p_anneal_end_frac": 1.0},
    {"type": "StochasticReconSubsetLoss", "coeff": 0.5},
    {"type": "PersistentPGDReconLoss", "coeff": 0.5, "optimizer": ADAM, "scope": {"type": "bsc"}, "n_warmup_steps": 1},
    {"type": "StochasticReconLoss", "coeff": 0.5, "hidden_acts_reconstruction": {"coeff": 0.1, "sites": ["h.1.*"]}},
]


def pd_of() -> PD:
    rate = {"lr_schedule": {"start_val": 3e-3}}
    targets = [{"module_pattern": "h.*.attn.*", "C": 10}, {"module_pattern": "h.*.mlp.*", "C": 16}]
    return PD.model_validate(
        {
            "decomposition_targets": targets,
            "ci_config": CI,
            "loss_metrics": LOSSES,
            "components_optimizer": rate | {"grad_clip_norm": 0.1},
            "ci_fn_optimizer": rate,
            "n_mask_samples": 1,
            "steps": STEPS,
            "batch_size": BATCH,
        }
    )


def given(bfloat16: bool) -> tuple[Problem, LanguageModel, Any]:
    pd, model = pd_of(), simple_mlp(2)
    sites = sites_from(pd, model)
    problem = problem_from(pd, sites, has_sequence=True, bfloat16=bfloat16)
    start = jax.eval_shape(lambda: init_state(problem, pd, (), (BATCH, LENGTH)))
    return problem, cut_for(model, sites), start


def losses(bfloat16: bool) -> dict[str, np.ndarray]:
    """Of all steps, on batches that are drawn afresh."""
    problem, net, _ = given(bfloat16)
    every = jnp.asarray(np.random.default_rng(0).integers(0, 20, (STEPS, BATCH, LENGTH)).astype(np.int32))

    @jax.jit
    def run(net: LanguageModel, every: jax.Array) -> Any:
        start = init_state(problem, pd_of(), (), (BATCH, LENGTH))
        return jax.lax.scan(lambda state, batch: train_step(problem, net, state, batch, 0), start, every)[1]

    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention, lowered, needs it in bfloat16
        found = run(net, every)
    return {name: np.asarray(x, np.float64) for name, x in found.items() if name.startswith("loss/")}


@pytest.mark.slow
def test_losses_stay_close_to_those_of_float32() -> None:
    """Within 2 % of one another as means of ten steps, while they change by far more than that.

    The exponent ends at 1: below it, importances that rounding moves away from 0 weigh as much as others.
    """
    wide, narrow = losses(False), losses(True)
    assert wide.keys() == narrow.keys()
    for name, expected in wide.items():
        a, b = (x.reshape(-1, 10).mean(axis=1) for x in (narrow[name], expected))
        np.testing.assert_allclose(a, b, rtol=0.02, err_msg=name)
        assert not np.array_equal(narrow[name], expected) or "Faithfulness" in name
    assert wide["loss/total"][-10:].mean() < 0.8 * wide["loss/total"][:10].mean()


def test_what_is_learned_is_float32() -> None:
    problem, net, start = given(True)
    batch = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    after, logs = jax.eval_shape(lambda *x: train_step(problem, *x, 0), net, start, batch)
    for before, now in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert before.dtype == now.dtype and now.dtype in (jnp.float32, jnp.int32)
    assert {x.dtype for x in logs.values()} == {jnp.dtype("float32")}


def test_the_network_runs_in_bfloat16() -> None:
    """Importances and logits too; a matrix product of float32 is one with masters alone, for faithfulness."""
    problem, net, start = given(True)
    batch = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    narrow = jnp.dtype("bfloat16")

    def forward(net, decomposition, batch):
        clean, inputs, _, _ = recorded_forward(*cast_compute(problem, (net, batch)), problem.sites)
        ci = importances(problem, decomposition.ci_fn, decomposition.components, inputs, 0, 0)
        return dense(clean), inputs, ci

    found = jax.eval_shape(forward, net, start.decomposition, batch)
    assert {x.dtype for x in jax.tree.leaves(found)} == {narrow}
    step = jax.make_jaxpr(lambda *x: train_step(problem, *x, 0))(net, start, batch)
    wide = [e for e in equations(step.jaxpr) if e.primitive.name == "dot_general" and e.outvars[0].aval.dtype != narrow]
    masters = {x.shape for x in jax.tree.leaves(start.decomposition.components)}
    weights = {(s.depth, s.d_in, s.d_out) for s in problem.sites}
    allowed = masters | weights
    assert wide
    for equation in wide:
        shapes = {v.aval.shape for v in equation.invars} | {equation.outvars[0].aval.shape}
        scores = equation.params["preferred_element_type"] == jnp.float32  # attention: summed in float32
        assert scores or all(shape in allowed or shape[::-1] in allowed for shape in shapes), equation


def equations(jaxpr) -> list:
    """Of a program and of all that it calls."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            found += equations(inner) if hasattr(inner, "eqns") else []
    return found


def test_divergences_and_sums_are_float32() -> None:
    """Exponentials, logarithms and sums over positions have no bfloat16 operand but those of activations."""
    problem, net, start = given(True)
    batch = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    step = jax.make_jaxpr(lambda *x: train_step(problem, *x, 0))(net, start, batch)
    every = equations(step.jaxpr)
    for equation in every:
        dtypes = {v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")}
        if equation.primitive.name in ("log", "exp", "log1p", "rsqrt", "sqrt", "reduce_max"):
            assert jnp.dtype("bfloat16") not in dtypes, equation
        if equation.primitive.name == "reduce_sum":
            # What is left are gradients of broadcasts: biases of the CI function, masks, norms.
            assert equation.outvars[0].aval.ndim > 0 or jnp.dtype("bfloat16") not in dtypes, equation


def test_parts_are_computed_in_float32() -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32))
    narrow = z.astype(jnp.bfloat16)
    kl = jax.eval_shape(divergences.kl, narrow, narrow)
    assert kl.dtype == jnp.float32
    assert jax.eval_shape(divergences.cross_entropy, narrow, jnp.zeros((3, 5), jnp.int32)).dtype == jnp.float32
    for norm in (transformer.rms_norm, partial(norms.rms_norm, weight=jnp.ones(8, jnp.bfloat16), eps=1e-6)):
        # One rounding of the result, rather than of the mean of squares.
        exact = np.asarray(norm(narrow.astype(jnp.float32)), np.float32) if norm is transformer.rms_norm else None
        got = np.asarray(norm(narrow).astype(jnp.float32))
        if exact is not None:
            np.testing.assert_allclose(got, exact, rtol=2**-8)


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_stored_weights_may_be_narrow(weights: str) -> None:
    """Masters are held against them in float32; one step in float32 on weights of another type."""
    problem, net, start = given(False)
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(weights)), net)
    batch = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    state, logs = jax.eval_shape(lambda *x: train_step(problem, *x, 0), narrow, start, batch)
    assert logs["loss/FaithfulnessLoss"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state.decomposition)} == {jnp.dtype("float32")}
