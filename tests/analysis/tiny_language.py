"""A tiny language model's run for tests of what reads text."""

from pathlib import Path

import jax
from data.texts import WORDS, documents, write_texts, write_tokenizer
from tiny_run import write_file

from vpd.analysis.run import Run
from vpd.face import decompose
from vpd.targets import init_simple_mlp_lm
from vpd.targets.checkpoint import save_language_model

LENGTH, VOCAB = 8, len(WORDS) + 2


def language_file(folder: Path) -> Path:
    """A run file, and beside it the model, tokenizer and texts that it names."""
    make = jax.jit(lambda: init_simple_mlp_lm(VOCAB, 8, 2, 2, 1, 12, seed=3, max_len=16))
    save_language_model(jax.tree.map(lambda x: 8 * x, make()), folder / "model")
    write_tokenizer(folder / "tokenizer.json")
    write_texts(folder / "texts", documents(60))
    return write_file(
        folder,
        "language.yaml",
        target={"spec": {"kind": "file", "path": str(folder / "model"), "model_class": "LlamaSimpleMLP"}},
        data={
            "dataset_name": str(folder / "texts"),
            "tokenizer_name": str(folder / "tokenizer.json"),
            "max_seq_len": LENGTH,
        },
        pd__decomposition_targets=[
            {"module_pattern": "h.*.attn.q_proj", "C": 3},
            {"module_pattern": "h.*.mlp.c_fc", "C": 4},
        ],
        pd__ci_config={"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [4]},
        pd__loss_metrics=[
            {"type": "FaithfulnessLoss", "coeff": 1.0},
            {"type": "ImportanceMinimalityLoss", "coeff": 1e-3, "pnorm": 1.0, "beta": 0.0},
            {"type": "StochasticReconLoss", "coeff": 0.5},
        ],
        pd__batch_size=4,
        pd__steps=4,
        pd__faithfulness_warmup_steps=0,
        cadence={"train_log_every": 2, "save_every": 4},
        eval=None,
    )


def train_language_run(folder: Path) -> Run:
    """The finished run."""
    with jax.numpy_dtype_promotion("standard"):
        return decompose(language_file(folder), out_dir=folder / "runs", run_id="language", quiet=True)
