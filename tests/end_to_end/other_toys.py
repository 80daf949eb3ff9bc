"""Tiny run files of a ResidMLP and of an induction transformer, which ask for all that is new with them at once."""

from tiny_run import TINY, Document

FAITHFULNESS, MINIMALITY, STOCHASTIC, PERSISTENT = TINY["pd"]["loss_metrics"]
PRETRAIN = {"steps": 30, "batch_size": 16, "lr": 1e-2}
CADENCE = {"train_log_every": 4, "save_every": 4}
EVERY_FIGURE = [
    {"type": "CI_L0", "ci_alive_threshold": 0.1},
    {"type": "CIMeanPerComponent"},
    {"type": "ComponentActivationDensity"},
    {"type": "CIHistograms", "n_batches_accum": 1},
]


def persistent(scope: Document, **changes: object) -> Document:
    """A persistent term under the name of its scope."""
    return PERSISTENT | {"name": f"persistent_{scope['type']}", "scope": scope, "start_frac": 0.0} | changes


RESID: Document = {
    "target": {
        "n_features": 6,
        "d_embed": 6,
        "d_mlp": 4,
        "n_layers": 2,
        "act_fn_name": "gelu",
        "in_bias": True,
        "out_bias": True,
        "fixed_identity_embedding": True,
        "pretrain": PRETRAIN,
    },
    "data": {"feature_probability": 0.2},
    "pd": {
        **TINY["pd"],
        "decomposition_targets": [
            {"module_pattern": "layers.*.mlp_in", "C": 7},
            {"module_pattern": "layers.*.mlp_out", "C": 5},
        ],
        "identity_decomposition_targets": [{"module_pattern": "layers.1.mlp_in", "C": 6}],
        "ci_config": {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [8]},
        "loss_metrics": [
            FAITHFULNESS,
            MINIMALITY,
            STOCHASTIC | {"hidden_acts_reconstruction": {"coeff": 0.5, "sites": ["*.mlp_out", "*.pre_identity"]}},
            {"type": "StochasticHiddenActsReconLoss", "coeff": 0.1},
        ],
        "steps": 8,
        "batch_size": 16,
    },
    "cadence": CADENCE,
    "eval": {
        "batch_size": 16,
        "n_steps": 2,
        "every": 4,
        "slow_every": 8,
        "slow_on_first_step": False,
        "metrics": [
            *EVERY_FIGURE,
            {
                "type": "IdentityCIError",
                "identity_ci": [{"layer_pattern": "layers.*.mlp_in", "n_features": 6}],
                "dense_ci": [{"layer_pattern": "layers.*.mlp_out", "k": 4}],
            },
            {"type": "PermutedCIPlots", "identity_patterns": ["*.mlp_in"], "dense_patterns": ["*.mlp_out"]},
            {"type": "UVPlots"},
        ],
    },
}

INDUCTION: Document = {
    "target": {
        "kind": "induction",
        "vocab": 7,
        "n_layers": 1,
        "n_heads": 1,
        "d_model": 4,
        "seq_len": 8,
        "pretrain": PRETRAIN,
    },
    "pd": {
        **TINY["pd"],
        "decomposition_targets": [
            {"module_pattern": "wte", "C": 5},
            {"module_pattern": "lm_head", "C": 5},
            {"module_pattern": "h.0.attn.[qv]_proj", "C": 6},
        ],
        "identity_decomposition_targets": [{"module_pattern": "h.0.attn.o_proj", "C": 3}],
        "tied_weights": [["wte", "lm_head"]],
        "loss_metrics": [
            FAITHFULNESS,
            MINIMALITY,
            persistent({"type": "sc"}, n_warmup_steps=1),
        ],
        "steps": 8,
        "batch_size": 8,
    },
    "cadence": CADENCE,
    "eval": {
        "batch_size": 8,
        "n_steps": 2,
        "every": 4,
        "slow_every": 8,
        "slow_on_first_step": False,
        "metrics": [*EVERY_FIGURE, {"type": "UVPlots", "dense_patterns": ["wte", "h.*"]}],
    },
}

# Every other scope that has an axis of positions, and routing over them.
SCOPES: Document = INDUCTION | {
    "eval": None,
    "pd": INDUCTION["pd"]
    | {
        "loss_metrics": [
            FAITHFULNESS,
            persistent({"type": "bsc"}, type="PersistentPGDReconSubsetLoss", routing={"type": "uniform_k_subset"}),
            persistent({"type": "nsc", "n_sources": 2}, use_sigmoid_parameterization=True, n_warmup_steps=1),
        ]
    },
}
