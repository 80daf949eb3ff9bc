"""A hash of weights, by which a run knows its target again."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree

from vpd.targets.layers import whole_arrays


def weights_fingerprint(target: PyTree) -> str:
    """A hash of all weights with their shapes, whatever the decomposition cuts the layers into."""
    digest = hashlib.sha256()
    for shape, parts in whole_arrays(target):
        digest.update(f"{shape} {parts[0].dtype}".encode())
        for part in parts:
            digest.update(np.ascontiguousarray(jax.device_get(part)).view(np.uint8).data)
    return digest.hexdigest()
