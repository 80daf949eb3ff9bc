"""The evaluation pass: scalars against a re-computation in NumPy over the same batches, every metric in the output."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.config import read_run_file
from vpd.evaluation.drawing import beside, plates_of
from vpd.evaluation.plates import draw_plates, leave_plates
from vpd.evaluation.suite import Suite
from vpd.experiment import Experiment, build, first_state
from vpd.objective.adversary import drawn_sources
from vpd.randomness import stream
from vpd.targets import init_tms
from vpd.training.state import TrainState

METRICS = [
    {
        "type": "CI_L0",
        "ci_alive_threshold": 0.1,
        "also_at": [0.0, 0.6],
        "groups": {"both": ["*"], "first": ["linear1"]},
    },
    {"type": "IdentityCIError", "identity_ci": [{"layer_pattern": "linear*", "n_features": 4}]},
    {"type": "PGDReconLoss", "init": "random", "step_size": 0.1, "n_steps": 3, "mask_scope": "c"},
    {"type": "PGDReconLoss", "name": "strong", "init": "random", "step_size": 0.1, "n_steps": 30, "mask_scope": "c"},
    {"type": "PGDReconProbe", "budgets": [0, 5], "step_size": 0.1, "restarts": 3, "mask_scope": "c"},
    {"type": "FaithfulnessPerSite"},
    {"type": "EffectiveRank"},
    {"type": "CIMaskedReconLoss"},
    {"type": "CIMaskedReconLoss", "name": "ridden", "hidden_acts_reconstruction": {"coeff": 3, "sites": ["*"]}},
    {"type": "CIMaskedReconLayerwiseLoss"},
    {"type": "UnmaskedReconLoss"},
    {"type": "CIHiddenActsReconLoss"},
    {"type": "StochasticHiddenActsReconLoss"},
    {"type": "CIHistograms", "n_batches_accum": 2},
    {"type": "ComponentActivationDensity", "ci_alive_threshold": 0.2},
    {"type": "CIMeanPerComponent"},
    {"type": "PermutedCIPlots"},
    {"type": "UVPlots"},
]
CONTENT = {
    "target": {"n_features": 4, "n_hidden": 2, "pretrain": {"steps": 1, "batch_size": 8, "lr": 1e-3}},
    "data": {"feature_probability": 0.4},
    "pd": {
        "seed": 3,
        "n_mask_samples": 2,
        "decomposition_targets": [{"module_pattern": "linear*", "C": 6}],
        "ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [5]},
        "steps": 100,
        "batch_size": 8,
        "loss_metrics": [
            {"type": "FaithfulnessLoss", "coeff": 1.0},
            {"type": "ImportanceMinimalityLoss", "coeff": 0.1, "pnorm": 2.0, "beta": 0.5,
             "p_anneal_start_frac": 0.0, "p_anneal_final_p": 1.0},
            {"type": "StochasticReconLoss", "coeff": 1.0},
            {"type": "PersistentPGDReconLoss", "coeff": 0.5, "scope": {"type": "bc"}, "start_frac": 0.5,
             "optimizer": {"type": "adam", "lr_schedule": {"start_val": 0.01}}},
        ],
        "components_optimizer": {"lr_schedule": {"start_val": 0.01}},
        "ci_fn_optimizer": {"lr_schedule": {"start_val": 0.01}},
    },
    "cadence": {"train_log_every": 10},
    "eval": {"batch_size": 16, "n_steps": 3, "every": 10, "slow_every": 10, "metrics": METRICS},
}  # fmt: skip


@cache
def scene() -> tuple[Experiment, TrainState, Suite]:
    """A random decomposition of a random TMS, with importances spread over [0, 1]."""
    experiment = build(read_run_file(CONTENT).config, init_tms(4, 2, 0, 1))
    assert experiment.eval_batch is not None
    state = first_state(experiment)
    spread = jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), state.decomposition.ci_fn
    )
    state = TrainState(type(state.decomposition)(state.decomposition.components, spread), state.training)
    return experiment, state, Suite(experiment.config, experiment.problem, experiment.target, experiment.eval_batch)


def batches(first: int) -> np.ndarray:
    """The three batches of a pass."""
    draw = scene()[0].eval_batch
    assert draw is not None
    return np.stack([draw(jnp.uint32(3), jnp.int32(first + i)) for i in range(3)])


def clip01(z: np.ndarray) -> np.ndarray:
    return np.clip(z, 0, 1)


class Numpy:
    """The same network and decomposition, written again."""

    def __init__(self, x: np.ndarray) -> None:
        experiment, state, _ = scene()
        self.W1, self.b = np.asarray(experiment.target.linear1), np.asarray(experiment.target.bias)
        self.W = {"linear1": self.W1, "linear2": self.W1.T}
        parts = {s: state.decomposition.components[s] for s in self.W}
        self.V = {s: np.asarray(p.V) for s, p in parts.items()}
        self.U = {s: np.asarray(p.U) for s, p in parts.items()}
        self.x = x
        self.inputs = {"linear1": x, "linear2": x @ self.W1}
        self.clean = np.maximum(self.inputs["linear2"] @ self.W1.T + self.b, 0)
        self.z = {s: self.gate(state.decomposition.ci_fn.sites[s], self.inputs[s] @ self.V[s]) for s in self.W}
        self.lower = {s: clip01(z) for s, z in self.z.items()}
        self.upper = {s: np.where(z > 1, 1 + 0.01 * (z - 1), clip01(z)) for s, z in self.z.items()}

    @staticmethod
    def gate(mlp, a: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr

        u = a[..., None] * np.asarray(mlp.hidden[0].W)[:, 0, :] + np.asarray(mlp.hidden[0].b)
        return (u * ndtr(u) * np.asarray(mlp.out.W)[:, :, 0]).sum(-1) + np.asarray(mlp.out.b)[:, 0]

    def masked(
        self, masks: dict[str, np.ndarray], deltas: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        outputs, h = {}, self.x
        for s in ("linear1", "linear2"):
            rest = 0 if deltas is None else deltas[s][:, None] * (h @ (self.W[s] - self.V[s] @ self.U[s]))
            h = ((h @ self.V[s]) * masks[s]) @ self.U[s] + rest if s in masks else h @ self.W[s]
            h = outputs[s] = h + self.b if s == "linear2" else h
        return np.maximum(h, 0), outputs

    def recon(self, masks: dict[str, np.ndarray], deltas: dict[str, np.ndarray] | None = None) -> float:
        return float(np.mean((self.masked(masks, deltas)[0] - self.clean) ** 2))


@pytest.mark.parametrize("step", [0, 60])
def test_scalars_against_numpy(step: int) -> None:
    _, state, suite = scene()
    got = suite.evaluate(state.decomposition, state.training.adversaries, step).metrics
    x = batches(first=-(-step // 10) * 3)
    pieces = [Numpy(b) for b in x]
    whole = Numpy(x.reshape(-1, 4))
    ones = {s: np.ones_like(ci) for s, ci in pieces[0].lower.items()}
    want = {
        "loss/CIMaskedReconLoss": np.mean([p.recon(p.lower) for p in pieces]),
        "loss/UnmaskedReconLoss": np.mean([p.recon(ones) for p in pieces]),
        "loss/CIMaskedReconLayerwiseLoss": np.mean(
            [np.mean([p.recon({s: p.lower[s]}) for s in p.lower]) for p in pieces]
        ),
        "loss/FaithfulnessLoss": sum(((p := whole).W[s] - p.V[s] @ p.U[s]).__pow__(2).sum() for s in whole.W) / 16,
    }
    N = x.shape[0] * x.shape[1]
    p = 2 - step / 100
    S = {s: ((ci + 1e-12) ** p).sum(0) for s, ci in whole.upper.items()}
    want["loss/ImportanceMinimalityLoss"] = sum((v / N * (1 + 0.5 * np.log2(1 + v))).sum() for v in S.values())
    counts = {s: (ci > 0.1).sum() / N for s, ci in whole.lower.items()}
    want |= {f"CI_L0/{s}": c for s, c in counts.items()}
    for threshold in (0.0, 0.6):
        above = {s: (ci > threshold).sum() / N for s, ci in whole.lower.items()}
        want |= {f"CI_L0@{threshold:g}/{s}": n for s, n in above.items()}
        want[f"CI_L0@{threshold:g}/both"] = sum(above.values())
    for s, W in whole.W.items():
        delta = W - whole.V[s] @ whole.U[s]
        want[f"FaithfulnessPerSite/{s}"] = (delta**2).mean()
        want[f"FaithfulnessPerSite/{s}/relative"] = np.linalg.norm(delta) / np.linalg.norm(W)
        for of, matrix in {"weight": W, "subcomponents": whole.V[s] @ whole.U[s]}.items():
            tall = matrix if s == "linear1" else matrix.T
            sigma = np.sqrt(np.linalg.eigvalsh(tall.T.astype(np.float64) @ tall))
            sigma = sigma / sigma.sum()
            want[f"EffectiveRank/{s}/{of}"] = np.prod(sigma**-sigma)
    want |= {"CI_L0/both": sum(counts.values()), "CI_L0/first": counts["linear1"]}
    _, outputs = whole.masked(whole.lower)
    clean = {"linear1": whole.inputs["linear2"], "linear2": whole.inputs["linear2"] @ whole.W1.T + whole.b}
    errors = {s: ((outputs[s] - clean[s]) ** 2).sum() for s in clean}
    want |= {f"CIHiddenActsReconLoss/{s}": errors[s] / clean[s].size for s in clean}
    want["loss/CIHiddenActsReconLoss"] = sum(errors.values()) / sum(c.size for c in clean.values())
    want |= {"loss/ridden": want["loss/CIMaskedReconLoss"]}
    want |= {"loss/ridden/hidden_acts": want["loss/CIHiddenActsReconLoss"]}
    for name, value in want.items():
        assert got[name] == pytest.approx(float(value), rel=1e-5, abs=1e-7), name


def test_restarts_of_a_probe_against_numpy() -> None:
    """Without ascents: masks from the random sources themselves, the worst of a batch and their mean."""
    experiment, state, suite = scene()
    got = suite.evaluate(state.decomposition, state.training.adversaries, 0).metrics
    worst, mean = [], []
    for index, x in enumerate(batches(0)):
        here, losses = Numpy(x), []
        for restart in range(3):
            key = jax.random.fold_in(stream(jnp.uint32(3), "eval/PGDReconProbe_0x0.1", jnp.int32(index)), restart)
            key = jax.random.split(jax.random.fold_in(key, 0))[0]
            shapes = {s: (1, 7) for s in here.W}
            sources = drawn_sources(experiment.problem.sites, shapes, key, jax.random.uniform)
            r = {s: np.asarray(u) for s, u in sources.items()}
            masks = {s: ci + (1 - ci) * r[s][:, :-1] for s, ci in here.lower.items()}
            losses.append(here.recon(masks, {s: u[:, -1] for s, u in r.items()}))
        worst.append(max(losses))
        mean.append(np.mean(losses))
    assert got["loss/PGDReconProbe_0x0.1/worst"] == pytest.approx(np.mean(worst), rel=1e-5)
    assert got["loss/PGDReconProbe_0x0.1/mean"] == pytest.approx(np.mean(mean), rel=1e-5)
    assert got["loss/PGDReconProbe_5x0.1/mean"] > got["loss/PGDReconProbe_0x0.1/mean"]


def test_vital_signs_against_numpy() -> None:
    _, state, suite = scene()
    found = suite.evaluate(state.decomposition, state.training.adversaries, 60)
    x = batches(first=18)
    whole = Numpy(x.reshape(-1, 4))
    assert found.health is not None
    zero, ones = ({s: np.full_like(ci, of) for s, ci in whole.lower.items()} for of in (0, 1))
    want = {"ci": whole.recon(whole.lower), "zero": whole.recon(zero), "unmasked": whole.recon(ones)}
    assert {name: found.health.recon[name] for name in want} == pytest.approx(want, rel=1e-5)
    probe = Numpy(0.75 * np.eye(4, dtype=np.float32))
    for site in found.health.sites:
        ci = whole.lower[site.site]
        delta = whole.W[site.site] - whole.V[site.site] @ whole.U[site.site]
        assert site.l0 == pytest.approx((ci > 0.1).sum() / len(ci), rel=1e-5)
        assert site.alive == (ci.mean(0) > 1e-6).sum() and site.C == 6 and site.mechanisms == 4
        assert site.delta == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(whole.W[site.site]), rel=1e-5)
        own = probe.lower[site.site]
        weighted = np.where(own > 0.1, own, 0) * (probe.inputs[site.site] @ probe.V[site.site])
        positive, negative = np.maximum(weighted, 0).sum(0), np.maximum(-weighted, 0).sum(0)
        assert site.two_signed == (np.minimum(positive, negative) > 0.2 * (positive + negative)).sum()
    adversary = found.health.adversaries["PersistentPGDReconLoss"]
    assert adversary.moved == 0 and adversary.loss == pytest.approx(adversary.random, rel=0.5)
    assert found.l0 == pytest.approx(sum(site.l0 for site in found.health.sites), rel=1e-5)


def test_counts_and_histogram_against_numpy() -> None:
    _, state, suite = scene()
    found = suite.evaluate(state.decomposition, state.training.adversaries, 0)
    x = batches(0)
    whole, first_two = Numpy(x.reshape(-1, 4)), Numpy(x[:2].reshape(-1, 4))
    i = suite.what.thresholds.index(0.2)
    for s in whole.lower:
        np.testing.assert_array_equal(found.sums.active[s][i], (whole.lower[s] > 0.2).sum(0))
        np.testing.assert_allclose(found.sums.ci[s], whole.lower[s].sum(0), rtol=1e-5)
        counts, _ = np.histogram(first_two.lower[s], bins=50, range=(0, 1))
        assert abs(found.sums.histogram[s] - counts).sum() <= 4  # entries on an edge may fall either way
        assert found.sums.histogram[s].sum() == first_two.lower[s].size


def test_every_metric_is_in_the_output_or_a_figure(tmp_path) -> None:
    experiment, state, suite = scene()
    found = suite.evaluate(state.decomposition, state.training.adversaries, 60)
    assert experiment.config.eval is not None
    listed = experiment.config.eval.metrics
    plates = list(plates_of(listed, suite.what, found, experiment.target, state.decomposition))
    leave_plates(tmp_path / "figures", 60, plates, beside(listed, found))
    folder = draw_plates(tmp_path / "figures", 60)
    drawn = {"CIHistograms": "ci_histogram", "PermutedCIPlots": "permuted_ci_plot", "UVPlots": "uv_plot"}
    drawn |= {"ComponentActivationDensity": "activation_density", "CIMeanPerComponent": "ci_mean_spectrum"}
    for metric in experiment.config.eval.metrics:
        in_scalars = any(name.removeprefix("loss/").startswith(metric.key) for name in found.metrics)
        in_figures = metric.type in drawn and (folder / f"{drawn[metric.type]}.png").stat().st_size > 1000
        assert in_scalars or in_figures, metric.type
    assert not [p for p in (tmp_path / "figures").iterdir() if p.name.startswith(".")]


def test_a_stronger_adversary_finds_more_and_carries_its_budget() -> None:
    _, state, suite = scene()
    got = suite.evaluate(state.decomposition, state.training.adversaries, 60).metrics
    assert got["loss/strong_30x0.1"] > got["loss/PGDReconLoss_3x0.1"] > got["loss/CIMaskedReconLoss"] * 0.5


def test_persistent_terms_rest_before_their_start_and_are_left_alone() -> None:
    _, state, suite = scene()
    before = suite.evaluate(state.decomposition, state.training.adversaries, 40).metrics
    after = suite.evaluate(state.decomposition, state.training.adversaries, 50).metrics
    assert "loss/PersistentPGDReconLoss" not in before
    assert after["loss/PersistentPGDReconLoss"] > 0


def test_passes_take_the_next_batches_and_repeat() -> None:
    _, state, suite = scene()
    once, again, other = (
        suite.evaluate(state.decomposition, state.training.adversaries, t).metrics for t in (60, 60, 70)
    )
    assert once == again
    assert once["loss/CIMaskedReconLoss"] != other["loss/CIMaskedReconLoss"]


def test_without_adversaries_persistent_terms_are_left_out() -> None:
    experiment, state, _ = scene()
    assert experiment.eval_batch is not None
    suite = Suite(experiment.config, experiment.problem, experiment.target, experiment.eval_batch, adversaries=False)
    found = suite.evaluate(state.decomposition, {}, 60)
    assert "loss/PersistentPGDReconLoss" not in found.metrics and found.solved is False


def test_a_smaller_batch_counts_by_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches through the whole pass, the second of half the size, against all of it as one batch."""
    experiment, state, _ = scene()
    draw = experiment.eval_batch
    assert draw is not None
    config = read_run_file(CONTENT | {"eval": CONTENT["eval"] | {"n_steps": 2, "metrics": MEANS}}).config
    assert config.eval is not None

    def part(seed, index):
        return draw(seed, index)

    def smaller(seed, index):
        return draw(seed, index)[:8]

    def together(seed, index):
        return jnp.concatenate([part(seed, index), smaller(seed, index + 1)])

    def suite(batches, n_steps: int) -> Suite:
        block = config.eval.model_copy(update={"n_steps": n_steps})
        changed = config.model_copy(update={"eval": block})
        return Suite(changed, experiment.problem, experiment.target, batches, adversaries=False)

    uneven, small, whole = suite(part, 2), suite(smaller, 2), suite(together, 1)
    programs = (uneven._run, small._run)
    monkeypatch.setattr(uneven, "_run", lambda *given: programs[int(given[5])](*given))
    got, want = (s.evaluate(state.decomposition, {}, 0, slow=False) for s in (uneven, whole))
    compared = [name for name in want.metrics if not name.startswith("loss/Stochastic")]
    assert {"loss/CIMaskedReconLoss", "CI_L0/linear1", "loss/ImportanceMinimalityLoss"} <= set(compared)
    for name in compared:
        assert got.metrics[name] == pytest.approx(want.metrics[name], rel=2e-5, abs=1e-9), name
    assert float(got.sums.positions) == 24


MEANS = [
    {"type": "CI_L0", "ci_alive_threshold": 0.1},
    {"type": "CIMaskedReconLoss"},
    {"type": "UnmaskedReconLoss"},
    {"type": "CIHiddenActsReconLoss"},
    {"type": "ComponentActivationDensity", "ci_alive_threshold": 0.2},
    {"type": "CIMeanPerComponent"},
]
