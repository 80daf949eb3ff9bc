"""What is said of induction: against NumPy on random parameters, and on decompositions whose answer is known."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import components_of, filled, pd_of

from vpd.data.induction import repeated_tokens
from vpd.decomposition import Components, ComponentSet, SiteMask
from vpd.evaluation.induction import Found, InductionProbe
from vpd.importance.build import init_ci_function
from vpd.targets import Induction, clean_forward, init_induction, masked_forward
from vpd.training.build import problem_from, sites_from
from vpd.training.state import Decomposition
from vpd.training.step import lower_importances

VOCAB, T, BATCHES, BATCH = 9, 12, 2, 5
SITES = ("wte", "h.0.attn.v_proj.pre_identity", "h.0.attn.v_proj", "h.1.attn.q_proj")


def batch(i: int) -> jax.Array:
    return repeated_tokens(jax.random.key(i), BATCH, VOCAB, T)


def pieces():
    """Target, problem and a fresh CI function over a lookup, an identity and two matrices."""
    target = jax.tree.map(lambda x: x / 2, filled(lambda _: init_induction(VOCAB, 4, 2, 1, T, 0)))
    pd = pd_of(
        [{"type": "UnmaskedReconLoss", "coeff": 1.0}],
        decomposition_targets=[{"module_pattern": p, "C": 3} for p in ("wte", "h.0.attn.v_proj", "h.1.attn.q_proj")],
        identity_decomposition_targets=[{"module_pattern": "h.0.attn.v_proj", "C": 4}],
        ci_config={"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": []},
    )
    sites = sites_from(pd, target)
    ci_fn = filled(lambda key: init_ci_function(pd.ci_config, sites, key))
    return target, problem_from(pd, sites, True), sites, ci_fn


@cache
def scene() -> tuple[Induction, Decomposition, Found, dict[str, np.ndarray]]:
    target, problem, sites, ci_fn = pieces()
    decomposition = Decomposition(components_of(sites), ci_fn)
    found = InductionProbe(problem, target).evaluate(decomposition, batch, BATCHES)
    tokens = jnp.concatenate([batch(i) for i in range(BATCHES)])
    ci = jax.jit(lambda d: lower_importances(problem, target, d, tokens))(decomposition)
    return target, decomposition, found, {site: np.asarray(x, np.float64) for site, x in ci.items()}


def all_tokens() -> np.ndarray:
    return np.concatenate([np.asarray(batch(i)) for i in range(BATCHES)])


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Induction positions and the others that have a next token, by a loop."""
    seen = np.array([[t < T - 1 and row[t] in row[:t] for t in range(T)] for row in all_tokens().tolist()])
    other = ~seen
    other[:, -1] = False
    return seen, other


def accuracy(logits: np.ndarray) -> float:
    seen, tokens = positions()[0], all_tokens()
    right = [logits[b, t].argmax() == tokens[b, t + 1] for b, t in zip(*np.nonzero(seen), strict=True)]
    return float(np.mean(right))


def masked(masks: dict[str, np.ndarray], delta: float | None) -> np.ndarray:
    target, decomposition, *_ = scene()
    shape = all_tokens().shape
    ready = {
        s: SiteMask(jnp.asarray(m, jnp.float32), None if delta is None else jnp.full(shape, delta))
        for s, m in masks.items()
    }
    run = jax.jit(masked_forward)
    return np.asarray(run(target, decomposition.components, jnp.asarray(all_tokens()), ready), np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_everything_against_numpy() -> None:
    target, _, found, ci = scene()
    seen, other = positions()
    clean = np.asarray(clean_forward(target, jnp.asarray(all_tokens()))[0], np.float64)
    contrast = {s: x[seen].mean(0) - x[other].mean(0) for s, x in ci.items()}
    gone = {s: c >= 0.1 for s, c in contrast.items()}
    assert 0 < sum(g.sum() for g in gone.values()) < sum(g.size for g in gone.values())  # a case that tells
    without = masked({s: np.broadcast_to(~g, ci[s].shape) for s, g in gone.items()}, 1.0)
    log_p, log_q = log_softmax(clean), log_softmax(without)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    want = {
        "accuracy_target": accuracy(clean),
        "accuracy_ci_masked": accuracy(masked(ci, None)),
        "accuracy_important_only": accuracy(masked({s: x > 0.1 for s, x in ci.items()}, None)),
        "accuracy_ablated": accuracy(without),
        "kl_ablated": kl[seen].mean(),
        "kl_ablated_elsewhere": kl[other].mean(),
    }
    for s, x in ci.items():
        want |= {f"ablated/{s}": gone[s].sum(), f"ci_sum/{s}": x[seen].sum(-1).mean()}
        want[f"ci_sum_elsewhere/{s}"] = x[other].sum(-1).mean()
        np.testing.assert_allclose(found.contrast[s], contrast[s], atol=1e-5)
        np.testing.assert_allclose(found.l0[s], (x > 0.1).sum(-1).mean(0), atol=1e-6)
    assert set(found.metrics) == {f"induction/{key}" for key in want}
    for key, value in want.items():
        assert found.metrics[f"induction/{key}"] == pytest.approx(float(value), rel=1e-4, abs=1e-6), key
    assert [row["ok"] for row in found.verdict if row["expected"]] == [
        want["accuracy_target"] >= 0.95,
        want["accuracy_important_only"] >= 0.9,
        want["accuracy_ablated"] <= 0.2,
        want["kl_ablated_elsewhere"] <= 0.1,
    ]


def constant(bias: dict[str, list[float]]) -> Found:
    """The first row of every matrix in a subcomponent of its own, and importances set by hand."""
    target, problem, sites, ci_fn = pieces()
    W = {"wte": target.wte, "h.0.attn.v_proj": target.layers[0].v_proj, "h.1.attn.q_proj": target.layers[1].q_proj}
    owned = {}
    for s in sites:
        w = np.eye(s.d_in) if s.kind == "identity" else np.asarray(W[s.name])
        V, U = np.zeros((s.d_in, s.C), np.float32), np.zeros((s.C, s.d_out), np.float32)
        U[0] = w[0]
        V[0, 0] = 1.0
        owned[s.name] = Components(jnp.asarray(V), jnp.asarray(U))
    fixed = jax.tree.map(jnp.zeros_like, ci_fn)

    for s in sites:
        fixed = eqx.tree_at(lambda f, s=s: f.sites[s.name].out.b, fixed, jnp.asarray(bias[s.name], jnp.float32))
    decomposition = Decomposition(ComponentSet(owned), fixed)
    return InductionProbe(problem, target).evaluate(decomposition, batch, BATCHES)


def test_importances_that_never_change_have_no_contrast() -> None:
    """Nothing is removed, so nothing changes; and the counts are those of the importances."""
    bias = {"wte": [1.0, 0.05, 0.0], SITES[1]: [0.5, 0.5, 0.0, 0.0], SITES[2]: [0.0] * 3, SITES[3]: [1.0, 1.0, 1.0]}
    found = constant(bias)
    for site, values in bias.items():
        np.testing.assert_allclose(found.contrast[site], 0.0, atol=1e-6)
        np.testing.assert_allclose(found.l0[site], sum(v > 0.1 for v in values))
        assert found.metrics[f"induction/ablated/{site}"] == 0
        assert found.metrics[f"induction/ci_sum/{site}"] == pytest.approx(sum(values), abs=1e-5)
    assert found.metrics["induction/kl_ablated"] == pytest.approx(0.0, abs=1e-5)
    assert found.metrics["induction/kl_ablated_elsewhere"] == pytest.approx(0.0, abs=1e-5)
    assert found.metrics["induction/accuracy_ablated"] == found.metrics["induction/accuracy_target"]
