"""Safetensors, in one file or in shards, with the configuration beside them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from safetensors import SafetensorError, safe_open

from vpd.errors import RunError
from vpd.run_directory import write_atomically
from vpd.targets.checkpoint.names import SAFETENSORS, Layout
from vpd.targets.checkpoint.sizes import Values, architecture, config_values
from vpd.targets.checkpoint.tensors import Checkpoint, Shape, expected_shapes, named_leaves, tensors_of
from vpd.targets.language_model import LanguageModel

INDEX, WEIGHTS, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
CONFIGS = (CONFIG, "model_config.yaml", "model_config.json")
READABLE = frozenset({"F32", "F16", "BF16"})
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def open_safetensors(path: Path, model_class: str | None = None) -> Checkpoint:
    """Open a ``.safetensors`` file, an index of shards, or a folder that holds either.

    Args:
        path: the file or folder; its configuration lies beside it.
        model_class: the architecture, where the configuration does not say it.

    Raises:
        RunError: where something is missing or can't be read.
    """
    file = _weights_file(path)
    values = read_values(file.parent)
    layout = SAFETENSORS[architecture(values, model_class, f"the configuration in {file.parent}")]
    opened = {name: _open(shard) for name, shard in _shards(file).items()}
    stored = {name: shard for shard in opened.values() for name in shard.keys()}  # noqa: SIM118  # not a mapping
    names = _canonical(stored, layout, values)
    slices = {name: stored[own].get_slice(own) for name, own in names.items()}
    return Checkpoint(
        source=str(path),
        format="safetensors",
        values=values,
        layout=layout,
        shapes={name: tuple(int(n) for n in piece.get_shape()) for name, piece in slices.items()},
        storage={name: str(piece.get_dtype()) for name, piece in slices.items()},
        readable=READABLE,
        read=lambda name: stored[names[name]].get_tensor(names[name]),
    )


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in (INDEX, WEIGHTS) if (path / name).is_file()]
        found = found or sorted(path.glob("*.safetensors"))
        if not found:
            raise RunError(f"{path} holds no {WEIGHTS} or {INDEX}; {_way_out(path)}")
        return found[0]
    if not path.is_file():
        raise RunError(f"{path} does not exist; give a folder with {WEIGHTS} and {CONFIG}, or a GGUF file")
    return path


def _way_out(path: Path) -> str:
    pickles = sorted(p for ending in ("bin", "pt", "pth") for p in path.glob(f"*.{ending}"))
    return pickle_sentence(pickles[0]) if pickles else "give another folder"


def pickle_sentence(path: Path) -> str:
    """Why a pickle is not read, and the line that converts it."""
    return (
        f"{path.name} is a pickle, which can run any code and is not read; convert it once with: "
        f"python -c \"import torch, safetensors.torch as s; w = torch.load('{path}', map_location='cpu', "
        f"weights_only=True); s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, "
        f"'{path.with_name(WEIGHTS)}')\""
    )


def _shards(file: Path) -> dict[str, Path]:
    """The files that hold the tensors."""
    if file.suffix != ".json":
        return {file.name: file}
    try:
        names = sorted(set(json.loads(file.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"{file} is no index of shards ({type(error).__name__}); copy the checkpoint again") from None
    outside = [name for name in names if not (isinstance(name, str) and Path(name).name == name)]
    if outside:
        raise RunError(f"{file} names {outside[0]!r}, which is no file beside it; copy the checkpoint again")
    lost = [name for name in names if not (file.parent / name).is_file()]
    if lost:
        raise RunError(f"{file} names {len(lost)} files that are not there, the first {lost[0]}; copy them beside it")
    return {name: file.parent / name for name in names}


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} can't be read as safetensors ({error}); it may be cut short: copy it again") from None


def read_values(folder: Path) -> Values:
    """The configuration beside the weights.

    Raises:
        RunError: where there is none, or it is no block of values.
    """
    found = [folder / name for name in CONFIGS if (folder / name).is_file()]
    if not found:
        raise RunError(f"{folder} holds no {CONFIG} or {CONFIGS[1]}, which says how the weights are to be read")
    try:
        text = found[0].read_text()
        values = json.loads(text) if found[0].suffix == ".json" else YAML(typ="safe").load(text)
    except (ValueError, YAMLError) as error:
        raise RunError(f"{found[0]} can't be read ({str(error).splitlines()[0]}); write it anew") from None
    if not isinstance(values, dict):
        raise RunError(f"{found[0]} is no block of values; write it anew")
    return {str(key): value for key, value in values.items()}


def _canonical(stored: Mapping[str, object], layout: Layout, values: Values) -> dict[str, str]:
    """Stored names by those of the layout: files of the bare network leave its prefix out."""
    bare = layout.prefix and not any(name.startswith(layout.prefix) for name in stored)
    names = {layout.prefix + own if bare and not own.startswith("lm_head.") else own: own for own in stored}
    head = layout.names["lm_head"]
    if layout.embedding not in names and head in names and values.get("tie_word_embeddings") is not False:
        names[layout.embedding] = names.pop(head)  # of two names of one tensor, some writers keep the first
    return names


def save_language_model(model: LanguageModel, folder: Path, extra: Mapping[str, object] | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json``, each whole or not at all, weights first.

    Llama and GPT-2 have the names and the layout of transformers. :func:`open_safetensors` reads the very bits back.

    Args:
        model: its arrays are written in their own type.
        folder: made if it is not there.
        extra: further values for ``config.json``; those of the model come after, and count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, folder / WEIGHTS)
    dtype = str(jax.tree.leaves(model)[0].dtype)
    values = {**(extra or {}), **config_values(model), "dtype": dtype}
    write_atomically(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def write_safetensors(model: LanguageModel, path: Path) -> None:
    """Write the weights tensor by tensor, so that no second copy of the model is made."""
    layout = SAFETENSORS[type(model)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, code, size in _entries(model, layout):
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with ExitStack() as cleanup:
        cleanup.callback(unfinished.unlink, missing_ok=True)
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in tensors_of(model, layout):
                file.write(tensor.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def _entries(model: LanguageModel, layout: Layout) -> Iterator[tuple[str, Shape, str, int]]:
    """Name, shape, type and bytes of every tensor of the file."""
    leaves = named_leaves(model)
    for place, shape in expected_shapes(model, layout).items():
        dtype = leaves[place.leaf].dtype
        yield place.name, shape, _CODES[str(dtype)], math.prod(shape) * dtype.itemsize
