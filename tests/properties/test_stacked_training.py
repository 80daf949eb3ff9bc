"""Equal matrices of consecutive layers trained as one stack learn what they learn one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any  # blocks of a run file are nested anything

import jax
import numpy as np
import pytest
from objective.scenes import ADAM, jit
from targets.language_models import simple_mlp, tokens

from vpd.config.run import PD
from vpd.decomposition import Site, members_in_order, unstacked
from vpd.importance import mlp, transformer
from vpd.importance.mlp import LayerwiseMLP
from vpd.targets import frozen_weights, layers
from vpd.training.build import cut_for, init_state, problem_from, sites_from
from vpd.training.state import Decomposition, TrainState
from vpd.training.step import train_step

TOKENS = tokens(batch=4, length=6)
MODEL = simple_mlp(3)
# What comes close: within this part of the largest value of an array. A first update of Adam moves everything by the
# sign of its gradient, so that of a hundred entries one may be rounding that went the other way.
TOLERANCE, STRAY = 1e-4, 0.01

TRANSFORMER = {"d_model": 4, "n_blocks": 1, "mlp_hidden_dim": [6], "attn_config": {"n_heads": 1, "max_len": 8}}
FRESH = {"init": "random", "step_size": 0.1, "n_steps": 2, "mask_scope": "bsc"}
STORED = {"optimizer": ADAM, "n_warmup_steps": 2}
MINIMALITY = {"type": "ImportanceMinimalityLoss", "coeff": 0.1, "pnorm": 2.0, "beta": 0.5} | {
    "p_anneal_start_frac": 0.0,
    "p_anneal_final_p": 0.4,
    "p_anneal_end_frac": 1.0,
}
SMOOTH = {"type": "SmoothL0ImportanceMinimalityLoss", "coeff": 0.1, "gamma": 0.3, "beta": 0.2} | {
    "frequency": {"coeff": 0.1, "reference_datapoint_count": 100.0}
}
SCOPES: tuple[dict[str, Any], ...] = (
    *({"type": scope} for scope in ("c", "sc", "bc", "bsc")),
    {"type": "nsc", "n_sources": 2},
)
# Layers 0 and 1 are alike, layer 2 has a matrix less.
PATTERNS = {"h.*.attn.q_proj": 2, "h.*.mlp.c_fc": 3, "h.[01].mlp.down_proj": 4}


@dataclass(frozen=True)
class Case:
    """What of a run file is not the same in all cases."""

    ci: dict[str, Any]
    losses: tuple[dict[str, Any], ...]
    patterns: Mapping[str, int] = field(default_factory=lambda: PATTERNS)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pd(self) -> PD:
        rate = {"lr_schedule": {"start_val": 0.01}}
        return PD.model_validate(
            {
                "decomposition_targets": [{"module_pattern": p, "C": C} for p, C in self.patterns.items()],
                "ci_config": self.ci,
                "loss_metrics": [{"coeff": 0.5} | loss for loss in self.losses],
                "components_optimizer": rate | {"grad_clip_norm": 0.5},
                "ci_fn_optimizer": rate,
                "n_mask_samples": 1,
                "steps": 10,
                "batch_size": 4,
            }
            | dict(self.changes)
        )


CHUNKWISE = {"mode": "chunkwise", "fn_type": "chunkwise_transformer", "sites_per_chunk": 3}
CASES = {
    "grid": Case(
        {"mode": "global", "fn_type": "global_shared_transformer", "simple_transformer_ci_cfg": TRANSFORMER},
        (
            {"type": "FaithfulnessLoss"},
            MINIMALITY,
            {"type": "UnmaskedReconLoss"},
            {"type": "CIMaskedReconSubsetLoss"},
            {"type": "StochasticReconLoss", "hidden_acts_reconstruction": {"coeff": 0.3, "sites": ["h.1.*"]}},
            {"type": "StochasticReconSubsetLoss", "routing": {"type": "static_probability", "p": 0.6}},
            {"type": "StochasticHiddenActsReconLoss"},
            {"type": "ChunkwiseSubsetReconLoss", "sites_per_chunk": 3, "n_samples": 1},
        ),
    ),
    "each alone": Case(
        {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [3]},
        (
            SMOOTH,
            {"type": "CIMaskedReconLayerwiseLoss"},
            {"type": "StochasticReconLayerwiseLoss"},
            {"type": "PGDReconLayerwiseLoss"} | FRESH,
        ),
        {"h.*.mlp.c_fc": 3},
    ),
    "persistent": Case(
        CHUNKWISE | {"simple_transformer_ci_cfg": TRANSFORMER},
        tuple(
            {"type": "PersistentPGDReconLoss", "name": scope["type"], "scope": scope, "coeff": 0.2} | STORED
            for scope in SCOPES
        ),
    ),
    "adversaries": Case(
        {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [5]},
        (
            {"type": "CIMaskedReconLoss"},
            {"type": "PGDReconSubsetLoss"} | FRESH,
            {"type": "PersistentPGDReconSubsetLoss", "scope": {"type": "bsc"}, "n_samples": 1} | STORED,
            {"type": "MergedStochasticPersistentReconLoss", "scope": {"type": "bc"}, "adv_fraction": 0.5} | STORED,
        ),
        changes={"sampling": "binomial", "initialization": "svd"}
        | {
            key: {"type": "muon", "lr_schedule": {"start_val": 0.01}}
            for key in ("components_optimizer", "ci_fn_optimizer")
        },
    ),
    "lookups": Case(
        {"mode": "global", "fn_type": "global_shared_mlp", "hidden_dims": [5]},
        ({"type": "StochasticReconSubsetLoss"}, {"type": "PGDReconLoss"} | FRESH),
        {"wte": 3, "h.*.attn.v_proj": 2, "h.*.mlp.c_fc": 3, "lm_head": 2},
        {"identity_decomposition_targets": [{"module_pattern": "h.[12].attn.o_proj", "C": 2}]},
    ),
    "vectors": Case(
        {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [3]},
        (MINIMALITY, {"type": "StochasticReconLoss"}),
        {"wte": 3, "h.*.mlp.c_fc": 3},
        {"use_delta_component": False},
    ),
}
# Stacks of more layers than are written out: a scan, and reshapes in place of splits.
ROLLED = ("grid", "persistent")


def named(state: TrainState, sites: tuple[Site, ...]) -> dict[str, jax.Array]:
    """Every learned array by a name that does not tell a stack from its matrices."""
    components, ci_fn = state.decomposition.components, state.decomposition.ci_fn
    found = unstacked_tree({s: (c.V, c.U) for s, c in components.owned.items()}, sites, "components")
    if isinstance(ci_fn, LayerwiseMLP):
        found |= unstacked_tree(ci_fn.sites, sites, "ci_fn")
    else:
        found |= {f"ci_fn/{jax.tree_util.keystr(path)}": x for path, x in jax.tree.leaves_with_path(ci_fn)}
    for name, adversary in state.training.adversaries.items():
        for part in ("sources", "m", "v"):
            found |= unstacked_tree(getattr(adversary, part), sites, f"{name}/{part}")
    return found


def unstacked_tree(by_site: Mapping[str, Any], sites: tuple[Site, ...], where: str) -> dict[str, jax.Array]:
    leaves = {s: jax.tree.leaves(tree) for s, tree in by_site.items()}
    n = len(next(iter(leaves.values()), ()))
    parts = [unstacked({s: own[i] for s, own in leaves.items()}, sites) for i in range(n)]
    return {f"{where}/{name}/{i}": x for i, part in enumerate(parts) for name, x in part.items()}


Trained = tuple[list[dict[str, jax.Array]], dict[str, jax.Array], dict[str, jax.Array]]


def trained(pd: PD, sites: tuple[Site, ...]) -> Trained:
    """Two steps: logs of both, the first moments after one, which are its gradients, and all that is learned."""
    net = cut_for(MODEL, sites)
    problem = problem_from(pd, sites, has_sequence=True)

    def first(net: Any, batch: jax.Array) -> TrainState:
        weights = frozen_weights(net, batch, sites) if pd.initialization == "svd" else None
        return init_state(problem, pd, (), batch.shape, weights)

    step = jit(lambda net, state, batch: train_step(problem, net, state, batch, 0))
    once, logs = step(net, jit(first)(net, TOKENS), TOKENS)
    twice, later = step(net, once, TOKENS)
    moments = once.training.components_optimizer.m, once.training.ci_fn_optimizer.m
    rested = {name: replace(adversary, sources={}) for name, adversary in once.training.adversaries.items()}
    slopes = TrainState(Decomposition(*moments), replace(once.training, adversaries=rested))
    return [logs, later], named(slopes, sites), named(twice, sites)


def assert_close(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array], stray: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        x, y = np.asarray(x, np.float64), np.asarray(b[name], np.float64)
        assert x.shape == y.shape and np.isfinite(x).all(), name
        far = np.abs(x - y) > TOLERANCE * np.abs(y).max() + 1e-9
        assert np.sum(far) <= stray * far.size + bool(stray), (name, np.abs(x - y).max(), np.abs(y).max())


def check(case: Case) -> None:
    pd = case.pd
    stacks = sites_from(pd, MODEL)
    single = tuple(replace(site, name=name, span=None) for site, _, name in members_in_order(stacks))
    assert len(single) > len(stacks) and any(site.depth > 1 for site in stacks)
    (logs, slopes, after), (one_logs, one_slopes, one_after) = trained(pd, stacks), trained(pd, single)
    for mine, other in zip(logs, one_logs, strict=True):
        assert set(mine) >= {f"loss/{loss.key}" for loss in pd.loss_metrics}
        assert_close(mine, other)
    assert_close(slopes, one_slopes)
    assert_close(after, one_after, STRAY)
    assert all(np.any(x) for name, x in slopes.items() if name.startswith("components"))


FAST = ("adversaries", "vectors")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in CASES])
def test_a_stack_learns_what_its_matrices_learn(name: str) -> None:
    check(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ROLLED)
def test_so_does_one_of_many_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layers, mlp, transformer):
        monkeypatch.setattr(module, "UNROLLED", 1)
    check(CASES[name])
