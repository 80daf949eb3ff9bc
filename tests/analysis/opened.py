"""Opened runs that were never trained: a small network of any kind with random subcomponents, nothing on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any  # a run file is nested blocks of anything

import jax
import jax.numpy as jnp
import numpy as np
from targets.language_models import MODELS, VOCAB
from tiny_run import tiny

from vpd.analysis.run import Run
from vpd.config import read_run_file
from vpd.experiment import build, first_state
from vpd.run_directory import RunDirectory
from vpd.targets import init_induction
from vpd.targets.tms import init_tms

SIZE = 2.0  # of V and U: scores that differ by more than rounding
GLOBS = {
    "simple_mlp": ("h.*.attn.{}_proj", "LlamaSimpleMLP"),
    "llama": ("model.layers.*.self_attn.{}_proj", "Llama"),
    "gpt2": ("transformer.h.*.attn.c_attn", "GPT2"),
    "induction": ("h.*.attn.{}_proj", ""),
}


def opened(name: str, folder: Path, roles: Sequence[str] = "qkvo", model: Any = None, **changes: Any) -> Run:
    """A run of a network of this kind, the projections of its attention decomposed.

    Args:
        name: a language model of the tests, ``induction`` or ``tms``.
        folder: what the run directory is said to be.
        roles: of the projections.
        model: the network itself, where it is not the test's own.
        changes: in the run file.
    """
    document = tiny(eval=None, pd__faithfulness_warmup_steps=0, pd__batch_size=2, **changes)
    if name == "tms":
        experiment = build(read_run_file(document).config, model or init_tms(5, 2, 0, 3))
    else:
        glob, kind = GLOBS[name]
        globs = dict.fromkeys(glob.format(role) for role in roles)
        pd = document["pd"]
        pd["decomposition_targets"] = [{"module_pattern": g, "C": 6 + i} for i, g in enumerate(globs)]
        pd["ci_config"] = {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [4]}
        pd["loss_metrics"] = pd["loss_metrics"][:3]
        if name == "induction":
            document["data"] = None
            sizes = {"vocab": VOCAB, "d_model": 8, "n_layers": 2, "n_heads": 2, "seq_len": 8}
            pretrain = {"steps": 1, "batch_size": 2, "lr": 1e-2}
            document["target"] = {"kind": "induction", **sizes, "pretrain": pretrain}
            model = model or init_induction(**sizes, seed=0)
        else:
            document["target"] = {"spec": {"kind": "file", "path": str(folder), "model_class": kind}}
            document["data"] = {
                "dataset_name": "none",
                "tokenizer_name": str(folder / "tokenizer.json"),
                "max_seq_len": 8,
            }
            model = model or MODELS[name](2)
        experiment = build(read_run_file(document).config, model, train_batch=_tokens)
    decomposition = first_state(experiment).decomposition
    larger = jax.tree.map(lambda x: SIZE * x, decomposition.components)
    decomposition = replace(decomposition, components=larger)
    return Run(RunDirectory(folder), experiment, decomposition, 0, "finished")


def _tokens(seed: Any, step: Any) -> jax.Array:
    """Batches of random tokens on the host."""
    return jnp.asarray(np.random.default_rng(int(step)).integers(0, VOCAB, (2, 8)).astype(np.int32))
