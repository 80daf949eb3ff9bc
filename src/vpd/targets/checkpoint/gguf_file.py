"""GGUF files of the llama architecture: quantised weights are read as the numbers that they stand for."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpd.errors import RunError
from vpd.rotary import Scaling, frequencies
from vpd.targets.checkpoint.names import GGUF
from vpd.targets.checkpoint.sizes import Values
from vpd.targets.checkpoint.tensors import Checkpoint, Tensor, expected_shapes, tensors_of
from vpd.targets.llama import Llama

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

READABLE = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"})
_FREQUENCIES = "rope_freqs.weight"
# Files hold the stretch of each frequency alone; these are the factors of every Llama 3 that has one.
_LOW, _HIGH, _LENGTH = 1.0, 4.0, 8192
_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file; q and k come as they are stored, in neighbouring rotary pairs.

    Raises:
        RunError: where it can't be read, or holds another architecture.
    """
    reader = _reader(path)
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> Tensor:
        found = tensors[name]
        return dequantize(found.data, found.tensor_type)

    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()}
    stretch = read(_FREQUENCIES) if _FREQUENCIES in tensors else None
    return Checkpoint(
        source=str(path),
        format="gguf",
        values=_values(path, _metadata(reader), shapes, stretch),
        layout=GGUF,
        shapes=shapes,
        storage={name: tensor.tensor_type.name for name, tensor in tensors.items()},
        readable=READABLE,
        read=read,
    )


def _reader(path: Path) -> "GGUFReader":
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; give a GGUF file") from None
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} can't be read as GGUF ({said}); it may be cut short: copy it again") from None


def _metadata(reader: "GGUFReader") -> dict[str, object]:
    """Single values; the tokenizer's lists are left alone."""
    fields = {name: field for name, field in reader.fields.items() if len(field.data) == 1 and len(field.types) == 1}
    found = {name: field.contents() for name, field in fields.items()}
    # The shortest decimal that is the same float32: 1e-5 rather than 9.999999747e-6.
    return {name: float(str(np.float32(x))) if isinstance(x, float) else x for name, x in found.items()}


def _values(
    path: Path, found: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], stretch: Tensor | None
) -> Values:
    """The file's metadata in the words of transformers."""
    kind = found.get("general.architecture")
    if kind != "llama":
        raise RunError(f"{path} holds a network of architecture {kind!r}, and vpd reads GGUF of 'llama' alone")
    if found.get("llama.expert_count"):
        raise RunError(f"{path} holds a mixture of experts, which vpd does not compute")
    scaled = found.get("llama.rope.scaling.type", "none")
    if scaled != "none":
        raise RunError(f"{path} scales rotary positions by {scaled!r}, and vpd reads Llama 3's or none")
    values = {ours: found[f"llama.{theirs}"] for ours, theirs in _KEYS.items() if f"llama.{theirs}" in found}
    values |= {"model_type": "llama", "tie_word_embeddings": "output.weight" not in shapes}
    embedding = shapes.get("token_embd.weight")
    if embedding:
        values["vocab_size"] = embedding[0]
    turned, d, n = (found.get(f"llama.{key}") for key in ("rope.dimension_count", *_KEYS_OF_HEADS))
    if isinstance(turned, int) and isinstance(d, int) and isinstance(n, int) and n:
        head = values.get("head_dim", d // n)
        if turned != head:
            raise RunError(f"{path} turns {turned} dimensions of heads of {head}, and vpd turns whole heads alone")
    if stretch is not None and (stretch != 1).any():
        values["rope_scaling"] = _scaling(path, stretch, values)
    return values


_KEYS_OF_HEADS = ("embedding_length", "attention.head_count")


def _scaling(path: Path, stretch: Tensor, values: Values) -> dict[str, object]:
    """The factors that stretch the frequencies in this way."""
    base, factor = values.get("rope_theta", 10000.0), float(stretch.max())
    scaling = Scaling(factor, _LOW, _HIGH, _LENGTH)
    if not isinstance(base, float) or not np.allclose(_stretch(len(stretch), base, scaling), stretch, rtol=1e-3):
        raise RunError(
            f"{path} stretches rotary frequencies in a way that is not Llama 3's, which vpd does not compute"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _LENGTH,
    }


def _stretch(half: int, base: float, scaling: Scaling) -> Tensor:
    """By how much each frequency is divided."""
    return (frequencies(half, base) / frequencies(half, base, scaling)).astype(np.float32)


def save_gguf(model: Llama, path: Path, like: Path | None = None, half: bool = False) -> None:
    """Write a Llama as GGUF, unquantised, whole or not at all; norms are float32.

    Args:
        model: any Llama.
        path: the file.
        like: a GGUF file whose further metadata, the tokenizer among it, is written along.
        half: matrices as float16 rather than float32.

    Raises:
        RunError: where its rotary scaling can't be written, or ``like`` can't be read.
    """
    scaling = model.scaling
    if scaling is not None and (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length) != (
        _LOW,
        _HIGH,
        _LENGTH,
    ):
        raise RunError(f"GGUF has no place for the rotary scaling {scaling}; save the model as safetensors")
    from gguf import GGUFWriter

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = GGUFWriter(unfinished, "llama")
        _write_metadata(writer, model, None if like is None else _reader(like))
        _write_tensors(writer, model, half)
        writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_metadata(writer: "GGUFWriter", model: Llama, like: "GGUFReader | None") -> None:
    stack = model.layers.runs[0]
    head_dim = stack.q_proj.shape[-1] // model.n_heads
    writer.add_block_count(model.layers.depth)
    writer.add_context_length(model.max_len)
    writer.add_embedding_length(model.embed_tokens.shape[1])
    writer.add_feed_forward_length(stack.gate_proj.shape[-1])
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(model.eps)
    writer.add_vocab_size(model.embed_tokens.shape[0])
    if like is None:
        return
    own = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in like.fields.items():
        if name in own or name.startswith(("GGUF.", "llama.")):
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)


def _write_tensors(writer: "GGUFWriter", model: Llama, half: bool) -> None:
    """Names and shapes first, then one tensor at a time."""

    def stored_type(axes: int) -> np.dtype:
        return np.dtype(np.float16 if half and axes == 2 else np.float32)

    stretch = None
    if model.scaling is not None:
        half_head = model.layers.runs[0].q_proj.shape[-1] // model.n_heads // 2
        stretch = _stretch(half_head, model.rope_base, model.scaling)
        writer.add_tensor_info(_FREQUENCIES, stretch.shape, stretch.dtype, stretch.nbytes)
    for place, shape in expected_shapes(model, GGUF).items():
        kind = stored_type(len(shape))
        writer.add_tensor_info(place.name, shape, kind, math.prod(shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if stretch is not None:
        writer.write_tensor_data(stretch)
    for _, tensor in tensors_of(model, GGUF):
        writer.write_tensor_data(tensor.astype(stored_type(tensor.ndim)))
