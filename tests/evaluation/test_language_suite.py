"""The evaluation of a small language model: batch by batch, repeated, judged, and continued as text."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation.language_scenes import plain_forward
from objective.scenes import jit
from targets.language_models import VOCAB, simple_mlp

from vpd.config import read_run_file
from vpd.config.metrics import CEandKLLosses
from vpd.decomposition import Components, ComponentSet, SiteMask
from vpd.evaluation.language import language_verdict
from vpd.evaluation.maskings import MASKINGS, masked_losses
from vpd.evaluation.samples import NEW_TOKENS, PROMPTS, SHOWN, TARGET, Tokens
from vpd.evaluation.suite import ALIVE_RATE, Suite
from vpd.evaluation.weights import WeightSquares
from vpd.objective import Scene
from vpd.randomness import stream
from vpd.targets import LanguageModel, clean_forward, frozen_weights
from vpd.training.build import cut_for, init_state, problem_from, sites_from
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances

B, T, N_BATCHES = 4, 9, 3
CONTENT = {
    "target": {"spec": {"kind": "file", "path": "absent", "model_class": "LlamaSimpleMLP"}},
    "data": {"dataset_name": "absent", "tokenizer_name": "absent", "max_seq_len": T},
    "pd": {
        "seed": 3,
        "n_mask_samples": 1,
        "decomposition_targets": [
            {"module_pattern": "h.*.attn.q_proj", "C": 8},
            {"module_pattern": "h.*.mlp.c_fc", "C": 12},
            {"module_pattern": "lm_head", "C": 20},
        ],
        "ci_config": {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [6]},
        "steps": 100,
        "batch_size": B,
        "loss_metrics": [{"type": "FaithfulnessLoss", "coeff": 1.0}, {"type": "StochasticReconLoss", "coeff": 1.0}],
        "components_optimizer": {"lr_schedule": {"start_val": 0.01}},
        "ci_fn_optimizer": {"lr_schedule": {"start_val": 0.01}},
    },
    "cadence": {"train_log_every": 10},
    "eval": {
        "batch_size": B,
        "n_steps": N_BATCHES,
        "every": 10,
        "slow_every": 10,
        "metrics": [
            {"type": "CEandKLLosses", "rounding_threshold": 0.2},
            {"type": "CI_L0", "groups": {"attention": ["*.attn.*"], "total": ["*"]}},
            {"type": "CIMeanPerComponent"},
            {"type": "ComponentActivationDensity", "ci_alive_threshold": 0.4},
            {"type": "CIMaskedAttnPatternsReconLoss", "n_heads": 2, "q_proj_path": "*q_proj", "k_proj_path": "*k_proj"},
        ],
    },
}  # fmt: skip


def draw(seed, step) -> jax.Array:
    return jax.random.randint(stream(seed, "test", step), (B, T), 0, VOCAB)


@cache
def scene() -> tuple[LanguageModel, Problem, Decomposition, Suite]:
    """A random decomposition with importances spread over [0, 1]."""
    config = read_run_file(CONTENT).config
    model = simple_mlp(3)
    sites = sites_from(config.pd, model)
    model = cut_for(model, sites)
    problem = problem_from(config.pd, sites, True, False, False)
    state = init_state(problem, config.pd, (), (B, T))
    ci_fn = jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), state.decomposition.ci_fn
    )
    decomposition = Decomposition(state.decomposition.components, ci_fn)
    return model, problem, decomposition, Suite(config, problem, model, draw)


@cache
def metrics(step: int = 0) -> dict[str, float]:
    _, _, decomposition, suite = scene()
    return suite.evaluate(decomposition, {}, step).metrics


@jit
def _clean_and_ci(model: LanguageModel, decomposition: Decomposition, batch: jax.Array):
    problem = scene()[1]
    return clean_forward(model, batch, problem.sites)[0], lower_importances(problem, model, decomposition, batch)


@cache
def batch_scene(index: int) -> tuple[Scene, dict[str, jax.Array]]:
    model, problem, decomposition, _ = scene()
    batch = draw(jnp.uint32(3), jnp.int32(index))
    clean, ci = _clean_and_ci(model, decomposition, batch)
    return Scene(model, decomposition.components, batch, clean, problem.sites, (B, T), True), ci


def test_losses_are_means_over_batches_and_the_fraction_is_formed_in_each() -> None:
    losses = jit(lambda s, c, k: masked_losses(s, c, k, 0.2))
    each = [losses(*batch_scene(i), stream(3, "eval/CEandKLLosses", i)) for i in range(N_BATCHES)]
    got = metrics()
    np.testing.assert_allclose(got["CEandKLLosses/ce_target"], np.mean([x.clean for x in each]), rtol=1e-5)
    apart = 0.0
    for masking in MASKINGS:
        ce, zero = (np.array([x.ce[m] for x in each], np.float64) for m in (masking, "zero_masked"))
        clean = np.array([x.clean for x in each], np.float64)
        fractions = (ce - clean) / (zero - clean)
        np.testing.assert_allclose(got[f"CEandKLLosses/ce_{masking}"], ce.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            got[f"CEandKLLosses/kl_{masking}"], np.mean([x.kl[masking] for x in each]), rtol=1e-5
        )
        np.testing.assert_allclose(
            got[f"CEandKLLosses/ce_unrecovered_{masking}"], fractions.mean(), rtol=1e-3, atol=1e-5
        )
        apart = max(apart, abs(fractions.mean() - (ce.mean() - clean.mean()) / (zero.mean() - clean.mean())))
    assert apart > 2e-3  # the fraction of the means would be another number


def test_counts_of_every_matrix() -> None:
    """L0, mean importance and firing against the importances of the same batches."""
    _, problem, _, _ = scene()
    by_batch = [batch_scene(i)[1] for i in range(N_BATCHES)]
    got = metrics()
    assert got["ComponentActivationDensity/positions"] == B * T * N_BATCHES
    total, some_rest = 0.0, False
    for site in problem.sites:
        for i, name in enumerate(site.members):
            ci = np.concatenate([np.asarray(c[site.name][i] if site.span else c[site.name]) for c in by_batch])
            ci = ci.reshape(-1, site.C)
            l0 = float((ci > 0).sum(-1).mean())
            total += l0
            np.testing.assert_allclose(got[f"CI_L0/{name}"], l0, rtol=1e-5)
            assert got[f"CIMeanPerComponent/{name}/alive"] == (ci.mean(0) > 1e-6).sum()
            firing = int(((ci > 0.4).mean(0) > ALIVE_RATE).sum())
            assert got[f"ComponentActivationDensity/{name}/firing"] == firing
            some_rest = some_rest or firing < site.C
    assert some_rest
    np.testing.assert_allclose(got["CI_L0/total"], total, rtol=1e-5)
    assert got["CI_L0/attention"] < got["CI_L0/total"]


def test_rarely_firing_is_not_firing() -> None:
    """Over more than a million positions, once is not often enough."""
    _, _, _, suite = scene()
    found = suite.evaluate(scene()[2], {}, 0)
    name = "h.1.attn.q_proj"
    active = {s: np.zeros_like(np.asarray(x)) for s, x in found.sums.active.items()}
    active[name][:, :2], active[name][:, 2] = 2.0, 3.0
    sums = replace(found.sums, active=active, positions=np.asarray(2e6, np.float32))
    key = f"ComponentActivationDensity/{name}/firing"
    squares = WeightSquares(found.sums.ci, found.sums.ci)
    assert suite._scalars(sums, squares, {})[key] == 1
    assert suite._scalars(replace(sums, positions=np.asarray(5e5, np.float32)), squares, {})[key] == 3


def test_the_same_evaluation_twice_and_another_one() -> None:
    model, problem, decomposition, suite = scene()
    fresh = Suite(read_run_file(CONTENT).config, problem, model, draw)
    assert suite.evaluate(decomposition, {}, 0).metrics == metrics() == fresh.evaluate(decomposition, {}, 0).metrics
    assert metrics(10)["CEandKLLosses/ce_target"] != metrics()["CEandKLLosses/ce_target"]


def test_attention_is_the_mean_over_layers() -> None:
    key = "CIMaskedAttnPatternsReconLoss"
    layers = [metrics()[f"{key}/h.{i}"] for i in range(3)]
    assert metrics()[key] == pytest.approx(np.mean(layers)) and min(layers) > 0


def numbers(**ce: float) -> dict[str, float]:
    return {f"CE/ce_{name}": value for name, value in ce.items()}


@pytest.mark.parametrize(
    ("ce", "oks"),
    [
        ({"unmasked": 3.019, "stoch_masked": 3.1, "ci_masked": 3.2}, (None, True, True, True, None)),
        ({"unmasked": 3.021, "stoch_masked": 5.1, "ci_masked": 6.2}, (None, False, False, False, None)),
        # Better by a digit that means nothing.
        ({"unmasked": 3.019, "stoch_masked": 4.99, "ci_masked": 5.9999}, (None, True, False, False, None)),
    ],
)
def test_verdict(ce: dict[str, float], oks: tuple[bool | None, ...]) -> None:
    found = numbers(target=3.0, rounded_masked=4.0, stoch_shuffled=5.0, ci_shuffled=6.0, **ce)
    rows = language_verdict(found, [CEandKLLosses(type="CEandKLLosses", name="CE", rounding_threshold=0.0)])
    assert tuple(row["ok"] for row in rows) == oks
    assert rows[1]["expected"] == "≤ 3.020" and "≤ 4.800" in str(rows[2]["expected"])


def test_verdict_sums_matrices_and_not_groups() -> None:
    _, problem, _, suite = scene()
    (row,) = [r for r in suite.evaluate(scene()[2], {}, 0).verdict if "L0" in str(r["measure"])]
    sites = [name for site in problem.sites for name in site.members]
    assert row["value"] == pytest.approx(sum(metrics()[f"CI_L0/{name}"] for name in sites))


def faithful() -> Decomposition:
    """V = W and U = 1: without any delta all masks at 1 are the network."""
    model, problem, decomposition, _ = scene()
    weights = frozen_weights(model, draw(jnp.uint32(0), jnp.int32(0)), problem.sites)
    eyes = {s.name: jnp.broadcast_to(jnp.eye(s.C), (*s.stack, s.C, s.C)) for s in problem.sites}
    owned = {s.name: Components(weights[s.name], eyes[s.name]) for s in problem.sites}
    known = decomposition.components
    return Decomposition(ComponentSet(owned, known.ties, known.members), decomposition.ci_fn)


def test_samples_continue_as_the_target_does() -> None:
    """The target's row against a loop over its own forward, the unmasked one of a faithful decomposition too."""
    model, _, decomposition, suite = scene()
    assert suite.writer is not None
    written = suite.writer.write(faithful())
    prompts = np.asarray(draw(jnp.uint32(3), jnp.int32(0)))[:PROMPTS]
    assert written.prompts == prompts.tolist()
    forward = jit(lambda m, x: clean_forward(m, x)[0][:, -1])
    window, expected = jnp.asarray(prompts), []
    for _ in range(NEW_TOKENS):
        new = jnp.argmax(forward(model, window), axis=-1).astype(jnp.int32)
        window = jnp.concatenate([window[:, 1:], new[:, None]], axis=1)
        expected.append(np.asarray(new))
    assert written.new[TARGET] == np.stack(expected, axis=1).tolist()
    assert written.new["unmasked"] == written.new[TARGET]
    assert len({str(written.new[name]) for name in SHOWN}) > 1
    other = suite.writer.write(decomposition)
    assert other.new[TARGET] == written.new[TARGET] and other.new["unmasked"] != written.new["unmasked"]


def test_first_token_under_importances_as_masks_against_a_plain_forward() -> None:
    *_, decomposition, suite = scene()
    assert suite.writer is not None
    written = suite.writer.write(decomposition)
    own, ci = batch_scene(0)
    logits, _ = plain_forward(own, {name: SiteMask(x) for name, x in ci.items()})
    first = np.argmax(logits[:PROMPTS, -1], axis=-1)
    assert [row[0] for row in written.new["ci_masked"]] == first.tolist()


def test_samples_are_the_same_again() -> None:
    *_, decomposition, suite = scene()
    assert suite.writer is not None
    assert suite.writer.write(decomposition) == suite.writer.write(decomposition)


def test_without_a_tokenizer_samples_are_ids() -> None:
    record = Tokens([[1, 2]], {TARGET: [[3, 4]], "unmasked": [[5, 6]]}).as_record(None)
    continuations = {TARGET: {"ids": [3, 4]}, "unmasked": {"ids": [5, 6]}}
    assert record == {"prompts": [{"ids": [1, 2], "continuations": continuations}]}
