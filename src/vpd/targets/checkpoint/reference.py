"""What an independent implementation computes from the same file, where one is installed."""

import importlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vpd.errors import RunError
from vpd.targets.checkpoint.packages import package_file
from vpd.targets.language_model import LanguageModel
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP

Logits = Float[np.ndarray, "B T vocab"]


def reference_logits(path: Path, model: LanguageModel, tokens: Int[np.ndarray, "B T"]) -> tuple[str, Logits]:
    """Name and logits of the reference: glassllm's own NumPy model, else transformers in float32.

    Args:
        path: file or folder of the weights.
        model: as it was read.
        tokens: input.

    Raises:
        RunError: where there is no reference, or it is not installed.
    """
    if isinstance(model, LlamaSimpleMLP):
        raise RunError("LlamaSimpleMLP has no installable reference implementation; leave the reference out")
    if path.suffix == ".npz":
        return "glassllm", _glassllm(path, tokens)
    try:
        torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    except ModuleNotFoundError as error:
        raise RunError(
            f"the reference is transformers with torch, and {error.name} is not installed; "
            "pip install 'vpd-jax[reference]'"
        ) from None
    folder = path if path.is_dir() else path.parent
    options = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()
    return f"transformers {transformers.__version__}", logits


def _glassllm(path: Path, tokens: Int[np.ndarray, "B T"]) -> Logits:
    package_file("glassllm")  # refuses where it is not installed
    return np.asarray(importlib.import_module("glassllm").GlassLM.load(path).forward(tokens).data)
