"""Every metric of the vocabulary on every kind of target: in the output under its key, drawn, or refused."""

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args  # a run file is nested blocks of anything

import jax
import jax.numpy as jnp
import pytest
from targets.language_models import VOCAB, simple_mlp

from vpd import ConfigError
from vpd.config import read_run_file
from vpd.config.losses import Loss
from vpd.config.metrics import OwnMetric
from vpd.data.induction import repeated_tokens
from vpd.evaluation.drawing import beside, plates_of
from vpd.evaluation.plates import draw_plates, leave_plates
from vpd.evaluation.suite import Evaluation, Suite
from vpd.randomness import stream
from vpd.targets import init_induction, init_resid_mlp, init_tms
from vpd.training.build import cut_for, init_state, problem_from, sites_from

sys.path.append(str(Path(__file__).parents[1] / "config"))  # the tables of the vocabulary

from test_vocabulary import LOSSES, METRICS

B, T = 4, 8
TYPES = [kind.__name__ for union in (OwnMetric, Loss) for kind in get_args(union)]
PERSISTENT = [name for name in LOSSES if "optimizer" in LOSSES[name]]
# What a figure shows alone.
DRAWN = {"CIHistograms": "ci_histogram", "PermutedCIPlots": "permuted_ci_plot", "UVPlots": "uv_plot"}
PRETRAIN = {"steps": 1, "batch_size": 4, "lr": 1e-3}
SCOPE = {"PGDReconLoss", "PGDReconLayerwiseLoss", "PGDReconSubsetLoss", "PGDReconProbe"}


class Kind(NamedTuple):
    """A kind of target: its block, its data, its sites, the network, its batch of a key."""

    target: dict[str, Any]
    data: dict[str, Any] | None
    patterns: list[str]
    network: Any
    draw: Any


def kinds() -> dict[str, Kind]:
    features = {"feature_probability": 0.4}
    tms = {"n_features": 4, "n_hidden": 2, "pretrain": PRETRAIN}
    resid = {"n_features": 4, "d_embed": 6, "d_mlp": 5, "n_layers": 1, "act_fn_name": "relu"}
    resid |= {"in_bias": False, "out_bias": False, "fixed_identity_embedding": False, "pretrain": PRETRAIN}
    induction = {"kind": "induction", "vocab": 7, "n_layers": 2, "n_heads": 2, "d_model": 4, "seq_len": T}
    text = {"dataset_name": "absent", "tokenizer_name": "absent", "max_seq_len": T}
    spec = {"kind": "file", "path": "absent", "model_class": "LlamaSimpleMLP"}
    uniform = lambda n: lambda key: jax.random.uniform(key, (B, n))  # noqa: E731
    ones = lambda key: jax.random.randint(key, (B, T), 0, VOCAB)  # noqa: E731
    repeated = lambda key: repeated_tokens(key, B, 7, T)  # noqa: E731
    return {
        "tms": Kind(tms, features, ["linear*"], lambda: init_tms(4, 2, 0, 1), uniform(4)),
        "resid_mlp": Kind(resid, features, ["layers.*"], lambda: init_resid_mlp(4, 6, 5, 1, "relu"), uniform(4)),
        "induction": Kind(
            induction | {"pretrain": PRETRAIN}, None, ["h.*"], lambda: init_induction(7, 4, 2, 2, T, 0), repeated
        ),
        "lm": Kind({"spec": spec}, text, ["h.*.attn.q_proj", "h.*.mlp.*"], lambda: simple_mlp(2), ones),
    }


def settings(kind: str, name: str) -> dict[str, Any]:
    """A metric with what it needs to be told of this target."""
    given: dict[str, Any] = {"type": name, **(METRICS.get(name) or LOSSES.get(name, {}))}
    if "scope" in given:
        given["scope"] = {"type": "c"}
    given |= {"mask_scope": "c", "n_steps": 1} if name in SCOPE and "n_steps" in given else {}
    if name.endswith("AttnPatternsReconLoss"):
        given = {"type": name, "n_heads": 2, "q_proj_path": "h.*.attn.q_proj", "k_proj_path": "h.*.attn.k_proj"}
    first = {"tms": "linear1", "resid_mlp": "layers.0.mlp_in"}.get(kind, "h.0.*")
    if name == "IdentityCIError":
        given["dense_ci"] = [{"layer_pattern": first, "k": 2}]
    if name == "PermutedCIPlots":
        given["identity_patterns"] = [first]
    return given


def content(kind: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """A run file that trains on all losses and evaluates these metrics."""
    own = kinds()[kind]
    persistent = [settings(kind, name) | {"coeff": 1.0} for name in PERSISTENT]
    return {
        "target": own.target,
        "data": own.data,
        "pd": {
            "seed": 1,
            "n_mask_samples": 1,
            "decomposition_targets": [{"module_pattern": p, "C": 5} for p in own.patterns],
            "ci_config": {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [3]},
            "steps": 10,
            "batch_size": B,
            "loss_metrics": [{"type": "FaithfulnessLoss", "coeff": 1.0}, *persistent],
            "components_optimizer": {"lr_schedule": {"start_val": 0.01}},
            "ci_fn_optimizer": {"lr_schedule": {"start_val": 0.01}},
        },
        "cadence": {"train_log_every": 10},
        "eval": {"batch_size": B, "n_steps": 3, "every": 5, "slow_every": 5, "metrics": metrics},
    }


def refusal(kind: str, name: str) -> str | None:
    try:
        read_run_file(content(kind, [settings(kind, name)]))
    except ConfigError as error:
        return str(error)
    return None


@cache
def evaluated(kind: str) -> tuple[Suite, Evaluation, Any]:
    """One pass over all metrics that this target takes, after its last update."""
    own = kinds()[kind]
    listed = [settings(kind, name) for name in TYPES if refusal(kind, name) is None]
    config = read_run_file(content(kind, listed)).config
    network = own.network()
    sites = sites_from(config.pd, network, config.tied_pairs)
    network = cut_for(network, sites)
    problem = problem_from(config.pd, sites, config.has_sequence)
    leading = (B, T) if config.has_sequence else (B,)
    state = init_state(problem, config.pd, config.tied_pairs, leading)
    suite = Suite(config, problem, network, lambda seed, step: own.draw(stream(seed, "test", step)))
    return suite, suite.evaluate(state.decomposition, state.training.adversaries, 10), state.decomposition


@cache
def drawn(kind: str, folder: Path) -> frozenset[str]:
    suite, found, decomposition = evaluated(kind)
    assert suite._config.eval is not None
    listed = suite._config.eval.metrics
    plates = list(plates_of(listed, suite.what, found, suite._target, decomposition))
    leave_plates(folder, 10, plates, beside(listed, found))
    at = draw_plates(folder, 10)
    return frozenset(path.stem for path in at.glob("*.png") if path.stat().st_size > 1000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", kinds())
def test_named_is_in_the_output_or_refused(kind: str, name: str, folder: Path) -> None:
    reason = refusal(kind, name)
    if reason is not None:
        assert reason.startswith("eval.metrics[0].") and name in reason and len(reason.splitlines()) == 1
        assert name in ("CEandKLLosses", "IdentityCIError", "PermutedCIPlots") or "AttnPatterns" in name
        return
    _, found, _ = evaluated(kind)
    mine = {key: x for key, x in found.metrics.items() if key.removeprefix("loss/").split("/")[0].startswith(name)}
    assert mine or DRAWN.get(name) in drawn(kind, folder / kind), f"{name} is nowhere"
    assert all(jnp.isfinite(x) for x in mine.values()), mine


@pytest.mark.parametrize("kind", kinds())
def test_vital_signs_and_intervals_of_every_kind(kind: str) -> None:
    suite, found, _ = evaluated(kind)
    assert found.health is not None and found.health.adversaries.keys() == set(PERSISTENT)
    assert [site.site for site in found.health.sites] == list(suite._sites)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] * (1 + 1e-6) + 1e-9 and found.metrics[name] <= high * (1 + 1e-6) + 1e-9, name
    assert {key for key in found.metrics if key.startswith("loss/CIMasked")} <= found.intervals.keys()
