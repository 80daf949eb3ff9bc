"""Counted operations against XLA's own count of one unrolled step."""

from collections.abc import Callable
from functools import partial
from typing import Any  # blocks of a run file are nested anything

import jax
import jax.numpy as jnp
import pytest

from vpd.commands.bench import counted_gflop, workload_config, workload_experiment
from vpd.config.run import PD
from vpd.experiment import state_template
from vpd.targets import TMS
from vpd.training.build import init_state, problem_from, sites_from
from vpd.training.cost import OPTIMIZER_OPERATIONS, Trained, step_operations, trained_sizes
from vpd.training.state import Decomposition
from vpd.training.step import train_step

# Wide enough for matrix products to rule: nothing is compiled or run, so that size costs nothing.
F, H, C1, C2, N = 1000, 600, 1500, 1100, 256
WITHIN = 0.02

STOCHASTIC = {"type": "StochasticReconLoss", "coeff": 1.0}
LAYERWISE = {"type": "StochasticReconLayerwiseLoss", "coeff": 1.0}
SUBSET = {"type": "StochasticReconSubsetLoss", "coeff": 1.0, "routing": {"type": "uniform_k_subset"}}
UNMASKED = {"type": "UnmaskedReconLoss", "coeff": 1.0}
MASKED = {"type": "CIMaskedReconLoss", "coeff": 1.0}
HIDDEN = {"type": "StochasticHiddenActsReconLoss", "coeff": 1.0}
FAITHFULNESS = {"type": "FaithfulnessLoss", "coeff": 1.0}
MINIMALITY = {"type": "ImportanceMinimalityLoss", "coeff": 1e-3, "pnorm": 1.0, "beta": 0.0}
FRESH = {"coeff": 1.0, "init": "random", "step_size": 0.1, "n_steps": 3, "mask_scope": "bc"}
PGD = {"type": "PGDReconLoss"} | FRESH
PGD_LAYERWISE = {"type": "PGDReconLayerwiseLoss"} | FRESH
ADAM = {"type": "adam", "beta1": 0.5, "beta2": 0.99, "lr_schedule": {"start_val": 0.01}}
PERSISTENT = {
    "type": "PersistentPGDReconLoss",
    "coeff": 0.5,
    "optimizer": ADAM,
    "scope": {"type": "bc"},
    "n_warmup_steps": 2,
}
PERSISTENT_SUBSET = PERSISTENT | {
    "type": "PersistentPGDReconSubsetLoss",
    "n_samples": 2,
    "routing": {"type": "static_probability", "p": 0.5},
}
LAYERWISE_CI = {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [500]}
VECTOR_CI = {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [3]}
GLOBAL_CI = {"mode": "global", "fn_type": "global_shared_mlp", "hidden_dims": [700, 400]}

SIZE = {"d_model": 300, "n_blocks": 2, "mlp_hidden_dim": [500], "attn_config": {"n_heads": 3}}
TRANSFORMER_CI = {"mode": "global", "fn_type": "global_shared_transformer", "simple_transformer_ci_cfg": SIZE}
CHUNKWISE_CI = {
    "mode": "chunkwise",
    "fn_type": "chunkwise_transformer",
    "sites_per_chunk": 1,
    "simple_transformer_ci_cfg": SIZE,
}


def pd_of(losses: list[dict[str, Any]], **changes: Any) -> PD:
    rate = {"lr_schedule": {"start_val": 1e-3}}
    block = {
        "decomposition_targets": [{"module_pattern": "linear1", "C": C1}, {"module_pattern": "linear2", "C": C2}],
        "ci_config": LAYERWISE_CI,
        "loss_metrics": losses,
        "components_optimizer": rate,
        "ci_fn_optimizer": rate,
        "steps": 100,
        "batch_size": N,
        "n_mask_samples": 1,
    }
    return PD.model_validate(block | changes)


def target_of(hidden_layers: int = 1) -> TMS:
    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    make = partial(jax.eval_shape, lambda W, b, hidden: TMS(W, b, hidden))
    return make(array(F, H), array(F), (array(H, H),) * hidden_layers)


def counted_and_xla(pd: PD, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, int], float]:
    """The parts, and what XLA counts in the step as it is traced, loops unrolled."""
    target = target_of()
    problem = problem_from(pd, sites_from(pd, target), False)
    state = jax.eval_shape(partial(init_state, problem, pd, (), (N,)))
    step = jax.jit(lambda target, state, batch, seed: train_step(problem, target, state, batch, seed))
    batch, seed = jax.ShapeDtypeStruct((N, F), jnp.float32), jax.ShapeDtypeStruct((), jnp.uint32)
    flops = xla_count(lambda: step.lower(target, state, batch, seed), monkeypatch)
    return step_operations(problem, target.matrices(), trained_sizes(state.decomposition), N), flops


def xla_count(lower: Callable[[], jax.stages.Lowered], monkeypatch: pytest.MonkeyPatch) -> float:
    """XLA counts the body of a loop once, so that loops are unrolled."""
    with monkeypatch.context() as patch:
        patch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
        patch.setattr(jax.lax, "fori_loop", partial(jax.lax.fori_loop, unroll=True))
        costs = lower().cost_analysis()
    assert isinstance(costs, dict)
    return costs["flops"]


SETS: dict[str, list[dict[str, Any]]] = {
    "stochastic": [STOCHASTIC],
    "layerwise": [LAYERWISE],
    "routed": [SUBSET],
    "unmasked": [UNMASKED],
    "ci_masked": [MASKED],
    "hidden_acts": [HIDDEN],
    "rider": [STOCHASTIC | {"hidden_acts_reconstruction": {"coeff": 1.0, "sites": ["*"]}}],
    "fresh": [PGD],
    "fresh_layerwise": [PGD_LAYERWISE],
    "persistent": [PERSISTENT],
    "persistent_subset": [PERSISTENT_SUBSET],
    "merged": [PERSISTENT_SUBSET | {"type": "MergedStochasticPersistentReconLoss", "adv_fraction": 0.5}],
    "all": [FAITHFULNESS, MINIMALITY, STOCHASTIC, LAYERWISE, PERSISTENT],
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("use_delta", [True, False])
def test_losses(name: str, use_delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, flops = counted_and_xla(pd_of(SETS[name], use_delta_component=use_delta), monkeypatch)
    assert sum(parts.values()) == pytest.approx(flops, rel=WITHIN), parts


@pytest.mark.parametrize("name", sorted(set(SETS) - {"ci_masked"}))
def test_what_a_set_adds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of its terms alone, so that the rest of the step hides nothing."""
    before, flops_before = counted_and_xla(pd_of([MASKED]), monkeypatch)
    parts, flops = counted_and_xla(pd_of([MASKED, *SETS[name]]), monkeypatch)
    assert sum(parts.values()) - sum(before.values()) == pytest.approx(flops - flops_before, rel=WITHIN), parts


@pytest.mark.parametrize(
    "ci", [LAYERWISE_CI, VECTOR_CI, GLOBAL_CI, TRANSFORMER_CI, CHUNKWISE_CI], ids=lambda ci: ci["fn_type"]
)
def test_ci_functions(ci: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parts, flops = counted_and_xla(pd_of([FAITHFULNESS, STOCHASTIC], ci_config=ci), monkeypatch)
    assert sum(parts.values()) == pytest.approx(flops, rel=WITHIN), parts


@pytest.mark.parametrize("samples", [1, 3])
def test_samples(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, flops = counted_and_xla(pd_of([STOCHASTIC, LAYERWISE], n_mask_samples=samples), monkeypatch)
    assert sum(parts.values()) == pytest.approx(flops, rel=WITHIN), parts


@pytest.mark.parametrize("group", ["components_optimizer", "ci_fn_optimizer"])
def test_muon(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    muon = {"lr_schedule": {"start_val": 1e-3}, "type": "muon", "ns_steps": 3}
    parts, flops = counted_and_xla(pd_of([FAITHFULNESS, STOCHASTIC], **{group: muon}), monkeypatch)
    assert sum(parts.values()) == pytest.approx(flops, rel=WITHIN), parts


def test_gates_by_hand() -> None:
    """C gates of width 16 on x V: their elementwise arithmetic is not XLA's to count as products."""
    pd = pd_of([FAITHFULNESS], ci_config={"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [16]})
    target = target_of(0)
    problem = problem_from(pd, sites_from(pd, target), False)
    decomposition = jax.eval_shape(partial(init_state, problem, pd, (), (N,))).decomposition
    assert isinstance(decomposition, Decomposition)
    trained = trained_sizes(decomposition)
    C = C1 + C2
    orthogonalised = sum(2 * a**2 * b + a**3 for a, b in (sorted(x) for x in ((F, C1), (C1, H), (H, C2), (C2, F))))
    components = F * C1 + C1 * H + H * C2 + C2 * F
    assert trained == Trained(components, C * (16 * 3 + 1), C * 32, 0, True, 0, orthogonalised, 0)
    inner = 2 * N * (F * C1 + H * C2)
    assert step_operations(problem, target.matrices(), trained, N) == {
        "clean": 2 * N * 2 * F * H,
        "ci forward": inner + 2 * N * C * 32,
        "ci backward": inner + 4 * N * C * 32,
        "faithfulness": 6 * F * H * C,
        "optimizers": OPTIMIZER_OPERATIONS * (trained.components + trained.ci_fn),
    }


def test_the_language_model_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = workload_experiment(workload_config("W"))
    template = state_template(experiment)
    step = jax.jit(lambda target, state, batch, seed: train_step(experiment.problem, target, state, batch, seed))
    tokens, seed = jax.ShapeDtypeStruct((8, 128), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    flops = xla_count(lambda: step.lower(experiment.target, template, tokens, seed), monkeypatch)
    assert 1e9 * counted_gflop(experiment, template) == pytest.approx(flops, rel=WITHIN)
