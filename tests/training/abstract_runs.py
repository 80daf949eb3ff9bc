"""Training programs of language models that nobody has loaded: shapes alone, and one batch of zeros for all steps."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # a run file is nested blocks of anything

import jax
import numpy as np

from vpd.config import read_run_file
from vpd.config.document import read_document
from vpd.data.feed import HostBatches
from vpd.experiment import Experiment, build
from vpd.targets.checkpoint import abstract_language_model

EXAMPLES = Path(__file__).parents[2] / "examples"
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Zeros:
    """Every batch is the same."""

    shape: tuple[int, int]

    def __getitem__(self, step: int) -> np.ndarray:
        return np.zeros(self.shape, np.int32)

    def from_step(self, step: int) -> Generator[np.ndarray]:
        while True:
            yield self[step]

    def between(self, first: int, end: int) -> "Zeros":
        return Zeros((end - first, self.shape[1]))


def abstract_run(document: Mapping[str, Any], values: Mapping[str, object]) -> Experiment:
    """A run file's experiment on a network of these sizes; nothing is allocated, and nothing is evaluated."""
    config = read_run_file(dict(document)).config.model_copy(update={"eval": None})
    dtype = config.target.weights_dtype
    batches = HostBatches(Zeros((config.pd.batch_size, config.data.max_seq_len)))
    return build(config, abstract_language_model(values, dtype=dtype), train_batch=batches)


def example(name: str) -> dict[str, Any]:
    """An example's content."""
    return dict(read_document(EXAMPLES / name))


def gigabytes(tree: Any) -> float:
    """Of all arrays, abstract or real."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9
