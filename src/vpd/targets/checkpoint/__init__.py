"""Weights of language models: read from safetensors, GGUF and packages, and written."""

from vpd.targets.checkpoint.gguf_file import save_gguf
from vpd.targets.checkpoint.load import Facts, load_language_model, open_checkpoint, open_path, source_facts
from vpd.targets.checkpoint.parity import Parity, parity_report
from vpd.targets.checkpoint.safetensors_files import save_language_model
from vpd.targets.checkpoint.sizes import abstract_language_model, config_values
from vpd.targets.checkpoint.tensors import Checkpoint, read_model

__all__ = [
    "Checkpoint",
    "Facts",
    "Parity",
    "abstract_language_model",
    "config_values",
    "load_language_model",
    "open_checkpoint",
    "open_path",
    "parity_report",
    "read_model",
    "save_gguf",
    "save_language_model",
    "source_facts",
]
