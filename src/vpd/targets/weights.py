"""Toy targets as safetensors: named arrays, and in the metadata what they are."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vpd.errors import RunError
from vpd.targets.induction import PROJECTIONS, AttentionLayer, Induction
from vpd.targets.resid_mlp import Layer, ResidMLP
from vpd.targets.tms import TMS

Toy = TMS | ResidMLP | Induction
Facts = Mapping[str, str]
Arrays = Mapping[str, Array]

NAMES: dict[type, str] = {TMS: "TMS", ResidMLP: "ResidMLP", Induction: "induction transformer"}


def target_bytes(target: Toy) -> bytes:
    """A toy target as safetensors; weights are ``[d_in, d_out]``, tied ones are stored once."""
    match target:
        case TMS():
            arrays, facts = _tms_arrays(target), {"kind": "tms"}
        case ResidMLP():
            arrays = {"W_E": target.W_E}
            for i, layer in enumerate(target.layers):
                named = {"mlp_in.weight": layer.mlp_in, "mlp_out.weight": layer.mlp_out}
                named |= {"mlp_in.bias": layer.in_bias, "mlp_out.bias": layer.out_bias}
                arrays |= {f"layers.{i}.{name}": value for name, value in named.items() if value is not None}
            facts = {"kind": "resid_mlp", "act_fn_name": target.act_fn_name}
        case Induction():
            arrays = {"wte.weight": target.wte}
            for i, layer in enumerate(target.layers):
                arrays |= {f"h.{i}.attn.{name}.weight": getattr(layer, name) for name in PROJECTIONS}
            facts = {"kind": "induction", "n_heads": str(target.n_heads), "seq_len": str(target.seq_len)}
    return _sorted_facts(save({name: np.asarray(value) for name, value in arrays.items()}, metadata=facts))


def _sorted_facts(file: bytes) -> bytes:
    """The same file, its metadata in order: safetensors has none, and a target is to have the same bytes always."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return file[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + file[end:]


def _tms_arrays(target: TMS) -> dict[str, Array]:
    arrays = {"linear1.weight": target.linear1, "linear2.bias": target.bias}
    arrays |= {f"hidden_layers.{i}.weight": w for i, w in enumerate(target.hidden_layers)}
    return arrays if target.linear2 is None else arrays | {"linear2.weight": target.linear2}


def target_from_arrays(arrays: Arrays, facts: Facts) -> Toy:
    """The inverse of :func:`target_bytes`.

    Args:
        arrays: by name.
        facts: metadata; without a kind it is a TMS.

    Raises:
        KeyError: an array or a fact that the target needs and that is not there.
        ValueError: arrays that don't fit each other, or a kind there is none of.
    """
    for name, value in arrays.items():
        axes = 1 if name.endswith("bias") else 2
        if value.ndim != axes:
            raise ValueError(f"{name} has shape {value.shape}, and needs {axes} axes")
    match facts.get("kind", "tms"):
        case "tms":
            n_hidden = sum(name.startswith("hidden_layers.") for name in arrays)
            f, h = arrays["linear1.weight"].shape
            _refuse_misfits(arrays, {"linear2.bias": (f,), "linear2.weight": (h, f), "hidden_layers.": (h, h)})
            hidden = tuple(arrays[f"hidden_layers.{i}.weight"] for i in range(n_hidden))
            return TMS(arrays["linear1.weight"], arrays["linear2.bias"], hidden, arrays.get("linear2.weight"))
        case "resid_mlp":
            act = facts["act_fn_name"]
            if act != "gelu" and act != "relu":
                raise ValueError(f"act_fn_name {act!r} is neither gelu nor relu")
            d_embed, d_mlp = arrays["W_E"].shape[1], arrays["layers.0.mlp_in.weight"].shape[1]
            fit = {"mlp_in.weight": (d_embed, d_mlp), "mlp_out.weight": (d_mlp, d_embed)}
            _refuse_misfits(arrays, fit | {"mlp_in.bias": (d_mlp,), "mlp_out.bias": (d_embed,)})
            return ResidMLP(arrays["W_E"], tuple(_resid_layer(arrays, i) for i in range(_depth(arrays))), act)
        case "induction":
            (vocab, d), n_heads, seq_len = arrays["wte.weight"].shape, int(facts["n_heads"]), int(facts["seq_len"])
            _refuse_misfits(arrays, {"_proj.weight": (d, d)})
            if n_heads < 1 or d % (2 * n_heads) or not 8 <= seq_len < 2 * vocab:
                raise ValueError(f"wte {vocab, d}, n_heads {n_heads} and seq_len {seq_len} don't fit each other")
            layers = tuple(
                AttentionLayer(*(arrays[f"h.{i}.attn.{name}.weight"] for name in PROJECTIONS))
                for i in range(_depth(arrays))
            )
            return Induction(arrays["wte.weight"], layers, n_heads, seq_len)
        case kind:
            raise ValueError(f"there is no target of kind {kind!r}")


def _refuse_misfits(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare every array whose name has one of the parts with the shape it must have."""
    for name, value in arrays.items():
        for part, shape in shapes.items():
            if part in name and value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, and needs {shape}")


def _depth(arrays: Arrays) -> int:
    """Number of layers, from names such as ``layers.0.mlp_in.weight``."""
    return 1 + max((int(name.split(".")[1]) for name in arrays if name.count(".") >= 3), default=-1)


def _resid_layer(arrays: Arrays, i: int) -> Layer:
    return Layer(
        arrays[f"layers.{i}.mlp_in.weight"],
        arrays[f"layers.{i}.mlp_out.weight"],
        arrays.get(f"layers.{i}.mlp_in.bias"),
        arrays.get(f"layers.{i}.mlp_out.bias"),
    )


def _float32(name: str, value: np.ndarray) -> Array:
    if value.dtype != np.float32:
        raise ValueError(f"{name} is {value.dtype}, and needs float32")
    return jnp.asarray(value)


def load_target(path: Path) -> Toy:
    """Read a toy target from a safetensors file.

    Raises:
        RunError: where the file can't be read or holds another network.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: _float32(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # not a mapping
            return target_from_arrays(arrays, file.metadata() or {})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} can't be read as the weights of a toy target ({type(error).__name__}: {error}); "
            "give a target.safetensors that vpd wrote, or write target.pretrain"
        ) from None
