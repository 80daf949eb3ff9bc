"""Documents joined and cut to rows of one length, which know the documents that they hold parts of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32

from vpd.data.data_set import row_type

# 2^64 over the golden ratio: multiples of it fill the circle evenly, so that few documents are split fairly too.
_GOLDEN, _CIRCLE = 0x9E3779B97F4A7C15, 1 << 64
GROUP_TOKENS = 1 << 14


def is_held_out(document: int, fraction: float) -> bool:
    """Whether a document is one to evaluate on: a function of its number alone."""
    return (document + 1) * _GOLDEN % _CIRCLE < fraction * _CIRCLE


class Rows:
    """The documents of one split, one after the other.

    Attributes:
        length: tokens a row.
        documents: how many were added.
        dropped: ids that are in no row.
    """

    def __init__(self, length: int) -> None:
        """No document yet."""
        self.length = length
        self.dropped = 0
        self._parts: list[Int32[np.ndarray, "..."]] = []
        self._numbers: list[int] = []
        self._starts: list[int] = []
        self._total = 0

    @property
    def documents(self) -> int:
        """How many were added."""
        return len(self._numbers)

    def add(self, number: int, ids: Int32[np.ndarray, "..."]) -> None:
        """Put a document behind the others."""
        self._parts.append(ids)
        self._numbers.append(number)
        self._starts.append(self._total)
        self._total += len(ids)

    def add_alone(self, number: int, ids: Int32[np.ndarray, "..."]) -> None:
        """Add a document whose rows hold nothing else; what is left of it is dropped."""
        whole = len(ids) // self.length * self.length
        self.dropped += len(ids) - whole
        if whole:
            self.add(number, ids[:whole])

    def table(self) -> pa.Table:
        """All whole rows; what is left over counts as dropped."""
        length = self.length
        flat = np.concatenate([np.zeros(0, np.int32), *self._parts])
        rows = len(flat) // length
        self.dropped += len(flat) - rows * length
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(flat[: rows * length]), type=row_type(length))
        begin = np.arange(rows, dtype=np.int64) * length
        starts, numbers = np.asarray(self._starts, np.int64), np.asarray(self._numbers, np.int64)
        first = np.searchsorted(starts, begin, "right") - 1
        counts = np.searchsorted(starts, begin + length, "left") - first
        ends = np.cumsum(counts)
        inside = np.repeat(first - (ends - counts), counts) + np.arange(counts.sum())
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        within = np.maximum(starts[inside] - np.repeat(begin, counts), 0).astype(np.int32)
        columns = {
            "tokens": tokens,
            "documents": pa.ListArray.from_arrays(offsets, pa.array(numbers[inside])),
            "starts": pa.ListArray.from_arrays(offsets, pa.array(within)),
        }
        return pa.table(columns)


def shard_bytes(table: pa.Table, length: int) -> bytes:
    """A table as a parquet file, in row groups small enough to read one for one row."""
    sink = pa.BufferOutputStream()
    group = max(1, GROUP_TOKENS // length)
    pq.write_table(table, sink, row_group_size=group, compression="zstd", use_dictionary=False)
    return sink.getvalue().to_pybytes()
