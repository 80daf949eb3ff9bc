"""Subcomponents in lists of few different lengths, so that few programs are compiled."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

# Bytes of one product on the device.
BLOCK_BYTES = 1 << 28
SHORTEST = 32


def padded(ids: Int[np.ndarray, " k"]) -> Int[np.ndarray, " _more"]:
    """The list filled up with its first entry: to a power of two, or three quarters of one."""
    length = SHORTEST
    while length < len(ids):
        length *= 2
    if len(ids) <= length * 3 // 4:
        length = length * 3 // 4
    return np.concatenate([ids, np.full(length - len(ids), ids[0] if len(ids) else 0, ids.dtype)]).astype(np.int32)


def blocks(ids: Int[np.ndarray, " k"], width: int) -> Iterator[Int[np.ndarray, " _part"]]:
    """The list in parts, of which a float32 row of so many entries each stays below a bound."""
    size = max(SHORTEST, BLOCK_BYTES // (4 * width))
    for begin in range(0, len(ids), size):
        yield ids[begin : begin + size]
