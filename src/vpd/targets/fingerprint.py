"""A hash of weights, by which a run knows its target again."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree


def weights_fingerprint(target: PyTree) -> str:
    """A hash of all weights with their shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(target):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).view(np.uint8).data)
    return digest.hexdigest()
