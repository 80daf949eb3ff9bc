"""A language model small enough to be decomposed in seconds, with texts and a tokenizer of its own."""

from pathlib import Path
from typing import Any  # a run file is nested blocks of anything

import jax
from data.texts import WORDS, documents, write_texts, write_tokenizer
from tiny_run import write_file

from vpd.targets import init_simple_mlp_lm
from vpd.targets.checkpoint import save_language_model

LENGTH, VOCAB, LAYERS = 8, len(WORDS) + 2, 3
SITES = (
    *(f"h.{i}.{matrix}" for i in range(2) for matrix in ("attn.q_proj", "mlp.c_fc", "mlp.down_proj")),
    *("h.2.attn.q_proj", "h.2.mlp.c_fc"),
)
TERMS: list[dict[str, Any]] = [
    {"type": "FaithfulnessLoss", "coeff": 1.0},
    {"type": "ImportanceMinimalityLoss", "coeff": 1e-3, "pnorm": 1.0, "beta": 0.5},
    {
        "type": "PersistentPGDReconLoss",
        "coeff": 0.5,
        "scope": {"type": "bsc"},
        "n_warmup_steps": 1,
        "optimizer": {"type": "adam", "lr_schedule": {"start_val": 0.01}},
    },
    {
        "type": "StochasticReconSubsetLoss",
        "coeff": 0.5,
        "hidden_acts_reconstruction": {"coeff": 0.1, "sites": ["h.1.*"]},
    },
]


def make_place(folder: Path) -> Path:
    """A folder with a model, a tokenizer and texts."""
    make = jax.jit(lambda: init_simple_mlp_lm(VOCAB, 8, LAYERS, 2, 1, 12, seed=3, max_len=16))
    save_language_model(jax.tree.map(lambda x: 8 * x, make()), folder / "model")
    write_tokenizer(folder / "tokenizer.json")
    write_texts(folder / "texts", documents(40))
    return folder


def written(place: Path, folder: Path, **changes: Any) -> Path:
    """The run file."""
    return write_file(
        folder,
        "lm.yaml",
        **{
            "target": {"spec": {"kind": "file", "path": str(place / "model"), "model_class": "LlamaSimpleMLP"}},
            "data": {
                "dataset_name": str(place / "texts"),
                "tokenizer_name": str(place / "tokenizer.json"),
                "max_seq_len": LENGTH,
            },
            "pd__decomposition_targets": [
                {"module_pattern": "h.*.attn.q_proj", "C": 3},
                {"module_pattern": "h.*.mlp.c_fc", "C": 4},
                {"module_pattern": "h.[01].mlp.down_proj", "C": 5},
            ],
            "pd__ci_config": {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [4]},
            "pd__loss_metrics": TERMS,
            "pd__batch_size": 4,
            "pd__steps": 12,
            "pd__faithfulness_warmup_steps": 3,
            "cadence": {"train_log_every": 2, "save_every": 6},
            "runtime": {"steps_per_dispatch": 3},
            "eval": {
                "batch_size": 8,
                "n_steps": 2,
                "every": 6,
                "slow_every": 12,
                "slow_on_first_step": False,
                "metrics": [
                    {"type": "CI_L0", "groups": {"layer_1": ["h.1.*"]}},
                    {"type": "CEandKLLosses", "rounding_threshold": 0.1},
                    {"type": "CIMeanPerComponent"},
                    {"type": "CIHiddenActsReconLoss"},
                ],
            },
        }
        | changes,
    )
