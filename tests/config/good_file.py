"""A good TMS run file, and ways to change one thing in it."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any  # a run file is nested blocks of anything; tests edit it freely

from vpd.config.document import write_document

Document = dict[str, Any]

PERSISTENT: Document = {
    "type": "PersistentPGDReconLoss",
    "coeff": 0.5,
    "optimizer": {"type": "adam", "beta1": 0.5, "beta2": 0.99, "lr_schedule": {"start_val": 0.01}},
    "scope": {"type": "bc"},
    "n_warmup_steps": 2,
}

GOOD: Document = {
    "pd": {
        "seed": 3,
        "n_mask_samples": 1,
        "decomposition_targets": [
            {"module_pattern": "linear1", "C": 12},
            {"module_pattern": "linear2", "C": 12},
        ],
        "ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [8]},
        "loss_metrics": [
            {"type": "FaithfulnessLoss", "coeff": 1.0},
            {"type": "ImportanceMinimalityLoss", "coeff": 0.003, "pnorm": 1.0, "beta": 0},
            {
                "type": "StochasticReconSubsetLoss",
                "coeff": 1,
                "routing": {"type": "static_probability", "p": 0.5},
            },
            {
                "type": "PGDReconLoss",
                "coeff": 1,
                "init": "random",
                "step_size": 0.1,
                "n_steps": 2,
                "mask_scope": "c",
            },
            PERSISTENT,
        ],
        "components_optimizer": {
            "lr_schedule": {"start_val": 0.001, "fn_type": "cosine", "final_val_frac": 0.0},
            "grad_clip_norm": 0.01,
        },
        "ci_fn_optimizer": {"lr_schedule": {"start_val": 1e-3, "fn_type": "cosine", "final_val_frac": 0}},
        "steps": 200,
        "batch_size": 64,
        "faithfulness_warmup_steps": 10,
    },
    "cadence": {
        "train_log_every": 50,
        "dense_log_phase": {"every": 10, "until_step": 100},
        "save_every": 100,
    },
    "eval": {
        "batch_size": 128,
        "n_steps": 2,
        "every": 50,
        "slow_every": 100,
        "metrics": [
            {"type": "CI_L0", "groups": {"both": ["linear*"]}, "ci_alive_threshold": 0.1},
            {"type": "IdentityCIError", "identity_ci": [{"layer_pattern": "linear1", "n_features": 5}]},
            {"type": "PermutedCIPlots", "identity_patterns": ["linear1", "linear2"]},
            {"type": "CIHistograms", "n_batches_accum": 2},
            {"type": "CIMaskedReconLoss"},
        ],
    },
    "target": {"n_features": 5, "n_hidden": 2, "pretrain": {"steps": 100, "batch_size": 64, "lr": 0.005}},
    "data": {"feature_probability": 0.05},
}

# The same run on the two other toys.
RESID: Document = {
    **GOOD,
    "target": {
        "n_features": 10,
        "d_embed": 20,
        "d_mlp": 5,
        "n_layers": 2,
        "act_fn_name": "relu",
        "in_bias": False,
        "out_bias": False,
        "fixed_identity_embedding": False,
        "pretrain": GOOD["target"]["pretrain"],
    },
    "pd": {**GOOD["pd"], "decomposition_targets": [{"module_pattern": "layers.*", "C": 12}]},
    "eval": None,
}
INDUCTION: Document = {
    **GOOD,
    "target": {
        "kind": "induction",
        "vocab": 12,
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 8,
        "seq_len": 16,
        "pretrain": GOOD["target"]["pretrain"],
    },
    "data": None,
    "pd": {
        **GOOD["pd"],
        "decomposition_targets": [{"module_pattern": "h.*", "C": 12}, {"module_pattern": "[wl]*", "C": 10}],
        "tied_weights": [["wte", "lm_head"]],
    },
    "eval": {**GOOD["eval"], "metrics": [{"type": "UVPlots"}, {"type": "CIHistograms", "n_batches_accum": 2}]},
}


def changed(path: str, value: object, good: Document = GOOD) -> Document:
    """The good file with one value set; `path` is dotted, numbers index lists."""
    document = deepcopy(good)
    owner, last = _owner(document, path)
    owner[last] = value
    return document


def without(path: str) -> Document:
    """The good file without one key."""
    document = deepcopy(GOOD)
    owner, last = _owner(document, path)
    del owner[last]
    return document


def renamed(path: str, name: str) -> Document:
    """The good file with one key spelt otherwise."""
    document = deepcopy(GOOD)
    owner, last = _owner(document, path)
    owner[name] = owner.pop(last)
    return document


def edited(edit: Callable[[Document], object]) -> Document:
    """The good file after an edit."""
    document = deepcopy(GOOD)
    edit(document)
    return document


def as_bytes(document: Document) -> bytes:
    """The file's content."""
    return write_document(document).encode()


def _owner(document: Document, path: str) -> tuple[Any, Any]:
    parts = [int(part) if part.isdigit() else part for part in path.split(".")]
    owner: Any = document
    for part in parts[:-1]:
        owner = owner[part]
    return owner, parts[-1]
