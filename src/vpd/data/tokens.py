"""Batches of a prepared folder, each a function of (seed, step)."""

import sys
import threading
import zlib
from collections.abc import Generator
from copy import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from vpd.data.data_set import DataSet, Shard, open_data_set, sha256_of
from vpd.errors import RunError

# A split up to this size is kept in memory once read; of a larger one only the row groups of a batch are read.
RESIDENT_BYTES = 1 << 31
PREFETCHED = 8


class TokenBatches:
    """``batches[step]``: the rows of one step, the same whenever it is asked for.

    The rows of a split are drawn without replacement: step ``s`` takes the places ``s·B … s·B + B - 1`` of an endless
    sequence in which each run of ``rows`` places, an epoch, is a permutation of all rows. So no row comes twice in
    an epoch and none is left out; a batch may hold the end of one epoch and the beginning of the next.

    Attributes:
        rows: sequences in the split.
        batch_size: sequences a step, over all processes.
        length: tokens a row.
    """

    def __init__(
        self,
        store: "RowStore",
        batch_size: int,
        seed: int,
        name: str,
        shuffle_each_epoch: bool,
        process_index: int,
        process_count: int,
    ) -> None:
        """See :func:`token_batches`."""
        import grain  # takes seconds, and toys don't need it

        self.rows, self.length, self.batch_size = store.rows, store.length, batch_size
        self._store = store
        self._share = batch_size // process_count
        self._first = process_index * self._share
        # Grain adds the epoch to its seed: seeds of neighbouring runs must not be neighbours themselves.
        own_seed = zlib.crc32(f"{seed}/data/{name}".encode())
        order = grain.MapDataset.range(store.rows).shuffle(seed=own_seed)
        self._order = order.repeat(reseed_each_epoch=shuffle_each_epoch)

    def __getitem__(self, step: int) -> Int32[np.ndarray, "batch length"]:
        """This process's rows of the global batch of a step: ``batch_size / process_count`` neighbouring ones."""
        return self._store.take(self.places(step))

    def between(self, first: int, end: int) -> "TokenBatches":
        """The same batches, of each of which only these rows are read."""
        part = copy(self)
        part._first, part._share = self._first + first, end - first
        return part

    def places(self, step: int) -> Int64[np.ndarray, "batch"]:
        """Which rows of the split these are."""
        assert step >= 0, f"steps start at 0, not at {step}"
        begin = step * self.batch_size + self._first
        return np.asarray([self._order[place] for place in range(begin, begin + self._share)], np.int64)

    def from_step(self, step: int) -> Generator[Int32[np.ndarray, "batch length"]]:
        """``self[step], self[step + 1], …``, read ahead in background threads until it is closed."""
        import grain

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=PREFETCHED)
        steps = grain.MapDataset.range(step, sys.maxsize)
        batches = iter(steps.map(self.__getitem__).to_iter_dataset(options))
        try:
            yield from batches
        finally:
            batches.close()


class RowStore:
    """The rows of a split, read from its shards when they are first needed.

    Attributes:
        rows: how many.
        length: tokens a row.
    """

    def __init__(self, data_set: DataSet, split: str, resident_bytes: int = RESIDENT_BYTES) -> None:
        """Nothing is read yet."""
        shards = data_set.splits[split].shards
        self.length = data_set.length
        self._ends = np.cumsum([shard.rows for shard in shards])
        self.rows = int(self._ends[-1])
        is_resident = self.rows * self.length * 4 <= resident_bytes
        kind = _Resident if is_resident else _Grouped
        self._shards = [kind(data_set.path / shard.file, shard, self.length) for shard in shards]

    def take(self, places: Int64[np.ndarray, "batch"]) -> Int32[np.ndarray, "batch length"]:
        """Rows by their number in the split."""
        rows = np.empty((len(places), self.length), np.int32)
        owners = np.searchsorted(self._ends, places, "right")
        for owner in np.unique(owners):
            chosen = np.flatnonzero(owners == owner)
            shard = self._shards[owner]
            rows[chosen] = shard.take(places[chosen] - (self._ends[owner] - shard.rows))
        return rows


class _Resident:
    """A shard that is decoded once."""

    def __init__(self, path: Path, shard: Shard, length: int) -> None:
        self.rows = shard.rows
        self._path, self._shard, self._length = path, shard, length
        self._content: Int32[np.ndarray, "rows length"] | None = None
        self._lock = threading.Lock()

    def take(self, places: Int64[np.ndarray, "batch"]) -> Int32[np.ndarray, "batch length"]:
        with self._lock:
            if self._content is None:
                self._content = self._read()
        return self._content[places]

    def _read(self) -> Int32[np.ndarray, "rows length"]:
        try:
            content = self._path.read_bytes()
            if sha256_of(content) != self._shard.sha256:
                raise _damaged(self._path, "its checksum is another")
            return _ids(pq.read_table(pa.BufferReader(content), columns=["tokens"]), self._length)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._path, type(error).__name__) from None


class _Grouped:
    """A shard of which single row groups are read, each time anew."""

    def __init__(self, path: Path, shard: Shard, length: int) -> None:
        self.rows = shard.rows
        self._path, self._length = path, length
        self._file: pq.ParquetFile | None = None
        self._ends = np.zeros(0, np.int64)
        self._lock = threading.Lock()

    def take(self, places: Int64[np.ndarray, "batch"]) -> Int32[np.ndarray, "batch length"]:
        rows = np.empty((len(places), self._length), np.int32)
        try:
            with self._lock:  # a parquet file is read by one thread at a time
                file = self._file or self._open()
                groups = np.searchsorted(self._ends, places, "right")
                for group in np.unique(groups):
                    chosen = np.flatnonzero(groups == group)
                    begin = self._ends[group - 1] if group else 0
                    ids = _ids(file.read_row_group(int(group), columns=["tokens"], use_threads=False), self._length)
                    rows[chosen] = ids[places[chosen] - begin]
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._path, type(error).__name__) from None
        return rows

    def _open(self) -> pq.ParquetFile:
        self._file = file = pq.ParquetFile(self._path, memory_map=True)
        footer = file.metadata
        self._ends = np.cumsum([footer.row_group(k).num_rows for k in range(footer.num_row_groups)])
        return file


def _ids(table: pa.Table, length: int) -> Int32[np.ndarray, "rows length"]:
    return table.column("tokens").combine_chunks().flatten().to_numpy().reshape(-1, length)


def _damaged(path: Path, said: str) -> RunError:
    return RunError(f"{path} is damaged ({said}); prepare the data again, or copy the folder again")


def token_batches(
    folder: Path,
    split: str,
    length: int,
    batch_size: int,
    seed: int,
    name: str,
    shuffle_each_epoch: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> TokenBatches:
    """Batches of one split of a prepared folder on one named stream.

    Args:
        folder: made by `vpd prepare-data`.
        split: for example ``train``.
        length: tokens a row.
        batch_size: sequences a step, over all processes.
        seed: the run's seed.
        name: of the stream, for example ``train`` or ``eval``.
        shuffle_each_epoch: whether each epoch has an order of its own; the first one's is repeated otherwise.
        process_index: which share of each batch.
        process_count: shares of each batch.

    Raises:
        RunError: where the folder does not hold what is asked for, or a batch can't be shared.
    """
    if batch_size % process_count:
        raise RunError(
            f"a batch of {batch_size} can't be shared by {process_count} processes; give a multiple as batch_size"
        )
    data_set = open_data_set(folder)
    data_set.check_split(split, length)
    store = RowStore(data_set, split)
    return TokenBatches(store, batch_size, seed, name, shuffle_each_epoch, process_index, process_count)
