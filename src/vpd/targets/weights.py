"""Toy targets as safetensors: named arrays in, named arrays out."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vpd.errors import RunError
from vpd.targets.tms import TMS


def tms_bytes(target: TMS) -> bytes:
    """A TMS as safetensors; ``linear2.weight`` is left out where it is tied."""
    arrays = {"linear1.weight": target.linear1, "linear2.bias": target.bias}
    arrays |= {f"hidden_layers.{i}.weight": w for i, w in enumerate(target.hidden_layers)}
    if target.linear2 is not None:
        arrays["linear2.weight"] = target.linear2
    return save({name: np.asarray(value) for name, value in arrays.items()})


def tms_from_arrays(arrays: Mapping[str, Array]) -> TMS:
    """The inverse of :func:`tms_bytes`; weights are ``[d_in, d_out]``.

    Raises:
        KeyError: an array that a TMS needs and that is not there.
        ValueError: a weight that is no matrix.
    """
    if arrays["linear1.weight"].ndim != 2:
        raise ValueError(f"linear1.weight has shape {arrays['linear1.weight'].shape}, and needs two axes")
    n_hidden = sum(name.startswith("hidden_layers.") for name in arrays)
    hidden = tuple(arrays[f"hidden_layers.{i}.weight"] for i in range(n_hidden))
    return TMS(arrays["linear1.weight"], arrays["linear2.bias"], hidden, arrays.get("linear2.weight"))


def load_tms(path: Path) -> TMS:
    """Read a TMS from a safetensors file.

    Raises:
        RunError: where the file can't be read or holds another network.
    """
    try:
        arrays = {name: jnp.asarray(value) for name, value in load(path.read_bytes()).items()}
        return tms_from_arrays(arrays)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(
            f"{path} can't be read as the weights of a TMS ({type(error).__name__}: {error}); "
            "give a target.safetensors that vpd wrote, or write target.pretrain"
        ) from None
