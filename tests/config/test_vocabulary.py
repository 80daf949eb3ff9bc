"""Every member of the vocabulary parses, resolves to what it means, and is documented."""

from typing import Any, get_args

import pytest
from good_file import PERSISTENT, Document, changed, edited

from vpd.config import RunConfig, config_reference, json_schema, match_sites, read_run_file, resolved_scope
from vpd.config.losses import Loss
from vpd.config.metrics import OwnMetric
from vpd.config.run import DecompositionTarget
from vpd.config.sources import RepeatedScope, Scope
from vpd.errors import ConfigError

_FRESH: Document = {"init": "zeroes", "step_size": "1e-1", "n_steps": 0, "mask_scope": "shared_across_batch"}
_PERSISTENT = {key: value for key, value in PERSISTENT.items() if key not in ("type", "coeff")}
_SIGN: Document = {"type": "sign", "lr_schedule": {"start_val": 0.1}, "beta1": None}
LOSSES: dict[str, Document] = {
    "FaithfulnessLoss": {},
    "UnmaskedReconLoss": {},
    "CIMaskedReconLoss": {},
    "CIMaskedReconLayerwiseLoss": {},
    "CIMaskedReconSubsetLoss": {"routing": {"type": "uniform_k_subset"}},
    "StochasticReconLoss": {},
    "StochasticReconLayerwiseLoss": {},
    "StochasticReconSubsetLoss": {"routing": {"type": "static_probability", "p": 1}},
    "ChunkwiseSubsetReconLoss": {"sites_per_chunk": 1, "n_samples": 2},
    "StochasticHiddenActsReconLoss": {},
    "PGDReconLoss": _FRESH,
    "PGDReconLayerwiseLoss": _FRESH,
    "PGDReconSubsetLoss": _FRESH,
    "PersistentPGDReconLoss": {**_PERSISTENT, "start_frac": 0.5},
    "PersistentPGDReconSubsetLoss": {**_PERSISTENT, "optimizer": _SIGN, "scope": {"type": "nsc", "n_sources": 4}},
    "MergedStochasticPersistentReconLoss": {**_PERSISTENT, "adv_fraction": 0.5},
    "ImportanceMinimalityLoss": {
        "pnorm": 2, "beta": 0.5, "p_anneal_start_frac": 0.0, "p_anneal_final_p": 0.4, "p_anneal_end_frac": 1.0,
    },
    "SmoothL0ImportanceMinimalityLoss": {
        "gamma": 1, "beta": 0, "gamma_anneal_start_frac": 0, "gamma_anneal_final_gamma": 0.01,
        "frequency": {"coeff": 1e-4, "reference_datapoint_count": 32768},
    },
}  # fmt: skip
METRICS: dict[str, Document] = {
    "CEandKLLosses": {"rounding_threshold": 0.0},
    "CI_L0": {"groups": None, "also_at": [0.1, 0.5]},
    "CIHistograms": {"n_batches_accum": 5},
    "ComponentActivationDensity": {"ci_alive_threshold": 0.1},
    "CIMeanPerComponent": {},
    "CIHiddenActsReconLoss": {},
    "PGDReconProbe": {"budgets": [0, 20], "step_size": 0.1, "restarts": 3, "mask_scope": "c"},
    "FaithfulnessPerSite": {},
    "EffectiveRank": {},
    "CIMaskedAttnPatternsReconLoss": {"n_heads": 4, "c_attn_path": "h.*.attn.c_attn"},
    "StochasticAttnPatternsReconLoss": {"n_heads": 4, "q_proj_path": "h.*.q_proj", "k_proj_path": "h.*.k_proj"},
    "IdentityCIError": {"identity_ci": None, "dense_ci": [{"layer_pattern": "linear1", "k": 2}]},
    "PermutedCIPlots": {"identity_patterns": ["linear1"], "dense_patterns": None},
    "UVPlots": {},
}
_LANGUAGE = ("CEandKLLosses", "CIMaskedAttnPatternsReconLoss", "StochasticAttnPatternsReconLoss")
_NOT_METRICS = ("PersistentPGDReconLoss", "PersistentPGDReconSubsetLoss", "MergedStochasticPersistentReconLoss")
_LM: Document = {
    "target": {"spec": {"kind": "hf", "model_class": "a.B", "model_name": "c/d"}, "output_extract": 0},
    "data": {"dataset_name": "x", "tokenizer_name": "y"},
}


def test_the_tables_here_are_complete() -> None:
    assert {loss.__name__ for loss in get_args(Loss)} == set(LOSSES)
    assert {metric.__name__ for metric in get_args(OwnMetric)} == set(METRICS)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_parses(name: str) -> None:
    loss = {"type": name, "coeff": 1, **LOSSES[name]}
    config = RunConfig.model_validate(changed("pd.loss_metrics", [loss]))
    assert type(config.pd.loss_metrics[0]).__name__ == name


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in _NOT_METRICS])
def test_every_loss_is_a_metric_without_coefficient(name: str) -> None:
    config = RunConfig.model_validate(changed("eval.metrics", [{"type": name, **LOSSES[name]}]))
    assert config.eval is not None
    assert type(config.eval.metrics[0]).__name__ == name


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_parses(name: str) -> None:
    document = changed("eval.metrics", [{"type": name, **METRICS[name]}])
    if name in _LANGUAGE:
        document.update(_LM)
    config = RunConfig.model_validate(document)
    assert config.eval is not None
    assert type(config.eval.metrics[0]).__name__ == name


_SIZE: Document = {"d_model": 8, "n_blocks": 1, "attn_config": {"n_heads": 2}}


@pytest.mark.parametrize(
    "ci",
    [
        {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [4, 4]},
        {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": []},
        {"mode": "global", "fn_type": "global_shared_mlp", "hidden_dims": [3]},
        {"mode": "global", "fn_type": "global_shared_transformer", "hidden_dims": None,
         "simple_transformer_ci_cfg": _SIZE},
        {"mode": "chunkwise", "fn_type": "chunkwise_transformer", "sites_per_chunk": 2,
         "simple_transformer_ci_cfg": {**_SIZE, "mlp_hidden_dim": [5]}},
    ],
)  # fmt: skip
def test_every_ci_function_parses(ci: Document) -> None:
    config = RunConfig.model_validate(changed("pd.ci_config", ci)).pd.ci_config
    assert config.fn_type == ci["fn_type"]
    size = config.model_dump().get("simple_transformer_ci_cfg")
    assert size is None or size["mlp_hidden_dim"] in ((32,), (5,))


@pytest.mark.parametrize(
    "target",
    [
        _LM["target"],
        {"spec": {"kind": "pretrained", "model_class": "a.B", "run_path": "runs/x"}},
        {"spec": {"kind": "file", "path": "x.safetensors", "model_class": "Llama"}, "weights_dtype": "bfloat16"},
        {"spec": {"kind": "package", "name": "p"}, "activation_checkpointing": True},
        {"kind": "induction", "vocab": 9, "n_layers": 2, "n_heads": 1, "d_model": 8, "seq_len": 16,
         "pretrain": {"steps": 1, "batch_size": 1, "lr": 0.1}},
    ],
)  # fmt: skip
def test_every_target_with_a_sequence_parses(target: Document) -> None:
    document = edited(lambda d: d.update(target=target, data=_LM["data"], eval=None))
    if "kind" in target:
        document["data"] = None
        document["pd"]["decomposition_targets"] = [{"module_pattern": "h.1.*", "C": 3}]
    config = RunConfig.model_validate(document)
    assert config.has_sequence
    assert (config.site_names or ())[:2] == (("wte", "h.0.attn.q_proj") if "kind" in target else ())


@pytest.mark.parametrize(
    ("written", "with_sequence", "without"),
    [
        ("c", "c", "c"),
        ("bc", "bc", "bc"),
        ("single_source", "c", "c"),
        ("shared_across_batch", "c", "c"),
        ("broadcast_across_batch", "sc", "c"),
        ("per_batch_per_position", "bsc", "bc"),
        ("unique_per_datapoint", "bsc", "bc"),
    ],
)
def test_older_scopes_are_aliases(written: str, with_sequence: str, without: str) -> None:
    assert resolved_scope(written, True) == (with_sequence, None)
    assert resolved_scope(written, False) == (without, None)
    scope = Scope.model_validate({"type": written})
    assert resolved_scope(scope, False) == (without, None)
    config = read_run_file(changed("pd.loss_metrics.4.scope", {"type": written})).config
    assert config.pd.loss_metrics[4].model_dump()["scope"] == {"type": written}


def test_repeated_sources_keep_their_number() -> None:
    for name in ("nsc", "repeat_across_batch"):
        scope = RepeatedScope.model_validate({"type": name, "n_sources": 3})
        assert resolved_scope(scope, False) == resolved_scope(scope, True) == ("nsc", 3)


def _item(pattern: str, C: int) -> DecompositionTarget:
    return DecompositionTarget(module_pattern=pattern, C=C)


def test_sites_are_matched_in_the_order_given() -> None:
    names = [f"h.{i}.{part}" for i in (0, 1, 2, 10) for part in ("mlp.c_fc", "attn.q_proj")]
    found = match_sites([_item("h.*.attn.q_proj", 5), _item("h.1.mlp.*", 7)], names)
    assert found == {"h.0.attn.q_proj": 5, "h.1.mlp.c_fc": 7, "h.1.attn.q_proj": 5, "h.2.attn.q_proj": 5,
                     "h.10.attn.q_proj": 5}  # fmt: skip
    assert list(found) == [name for name in names if name in found]


@pytest.mark.parametrize("pattern", ["H.*", "h.3.*", "h.1"])
def test_a_pattern_without_sites_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"pd.decomposition_targets\[0\].module_pattern"):
        match_sites([_item(pattern, 5)], ["h.0.a", "h.1.a", "h.10.a"])


def test_two_patterns_on_a_site_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"h\.1\.a"):
        match_sites([_item("h.*", 5), _item("h.1.*", 5)], ["h.0.a", "h.1.a"])


def test_the_schema_describes_every_field() -> None:
    schema: dict[str, Any] = json_schema()
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    for name, block in definitions.items():
        for key, field in block.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"
    assert "coeff" not in definitions["CIMaskedReconLossMetric"]["required"]


def test_the_reference_has_every_block_and_default() -> None:
    text = config_reference()
    for name in (*LOSSES, *METRICS, "RunConfig", "Runtime", "TMSTarget", "LRSchedule"):
        assert f"## {name}\n" in text
    assert "| `steps` | an integer >= 1 | ! |" in text
    assert all(line.count("|") == 5 for line in text.splitlines() if line.startswith("|"))
