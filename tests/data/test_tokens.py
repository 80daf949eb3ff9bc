"""Batches of a prepared folder: a function of (seed, step), every epoch a permutation, shared among processes."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import LENGTH, edit_meta

from vpd.data.data_set import DataSet, Shard, Split, TokenizerFacts, open_data_set, sha256_of
from vpd.data.tokens import RowStore, TokenBatches, token_batches
from vpd.errors import RunError


def all_rows(folder: Path, split: str = "train") -> np.ndarray:
    shards = open_data_set(folder).splits[split].shards
    tables = [pq.read_table(folder / shard.file, columns=["tokens"]) for shard in shards]
    return np.asarray(pa.concat_tables(tables)["tokens"].to_pylist(), np.int32)


def batches(folder: Path, batch_size: int = 7, seed: int = 0, name: str = "train", **changes: object) -> TokenBatches:
    return token_batches(folder, "train", LENGTH, batch_size, seed, name, **changes)


def places(drawn: TokenBatches, count: int) -> np.ndarray:
    return np.concatenate([drawn.places(step) for step in range(count)])


def test_a_batch_is_the_rows_of_its_places(prepared: Path) -> None:
    rows, drawn = all_rows(prepared), batches(prepared)
    assert drawn.rows == len(rows) > 100 and len(open_data_set(prepared).splits["train"].shards) > 1
    for step in (0, 1, 500):
        assert drawn[step].dtype == np.int32 and drawn[step].shape == (7, LENGTH)
        assert np.array_equal(drawn[step], rows[drawn.places(step)])


@pytest.mark.parametrize("batch_size", [1, 7, 400])
def test_every_epoch_is_a_permutation(batch_size: int, prepared: Path) -> None:
    drawn = batches(prepared, batch_size)
    n = drawn.rows
    taken = places(drawn, -(-4 * n // batch_size))[: 4 * n].reshape(4, n)
    for epoch in taken:
        assert sorted(epoch.tolist()) == list(range(n))
    assert len({epoch.tobytes() for epoch in taken}) == 4
    assert not np.array_equal(taken[0], np.arange(n))


def test_one_order_for_all_epochs(prepared: Path) -> None:
    drawn = batches(prepared, 1, shuffle_each_epoch=False)
    taken = places(drawn, 2 * drawn.rows).reshape(2, -1)
    assert np.array_equal(taken[0], taken[1])
    assert sorted(taken[0].tolist()) == list(range(drawn.rows))


def test_seed_and_name_choose_the_order(prepared: Path) -> None:
    def first(seed: int, name: str) -> bytes:
        return places(batches(prepared, 8, seed, name), 40).tobytes()

    assert first(0, "train") == first(0, "train")
    assert len({first(0, "train"), first(1, "train"), first(0, "eval")}) == 3


def test_neighbouring_seeds_share_no_epoch(prepared: Path) -> None:
    orders = [places(batches(prepared, 1, seed), 3 * batches(prepared, 1).rows).reshape(3, -1) for seed in range(3)]
    assert len({epoch.tobytes() for order in orders for epoch in order}) == 9


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_global_batch(process_count: int, prepared: Path) -> None:
    whole = batches(prepared, 12)
    parts = [batches(prepared, 12, process_index=k, process_count=process_count) for k in range(process_count)]
    for step in (0, 3, 77):
        assert np.array_equal(np.concatenate([part[step] for part in parts]), whole[step])


def test_some_rows_of_a_batch(prepared: Path) -> None:
    whole = batches(prepared, 12)
    part = whole.between(3, 8)
    for step in (0, 3, 77):
        assert np.array_equal(part[step], whole[step][3:8])
    ahead = part.between(1, 2).from_step(5)
    assert np.array_equal(next(ahead), whole[5][4:5])
    ahead.close()
    assert len(whole[0]) == 12


def test_read_ahead_is_the_same(prepared: Path) -> None:
    drawn = batches(prepared)
    ahead = drawn.from_step(19)
    for step in range(19, 120):
        assert np.array_equal(next(ahead), drawn[step])
    ahead.close()
    with pytest.raises(StopIteration):
        next(ahead)
    before = threading.active_count()
    for _ in range(20):
        one = drawn.from_step(0)
        next(one)
        one.close()
    assert threading.active_count() <= before + 8


def test_a_large_split_is_read_by_row_groups(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = open_data_set(prepared)
    rng = np.random.default_rng(0)
    rows = all_rows(prepared)
    store = RowStore(data_set, "train", resident_bytes=0)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: (read.append(a[1]), original(*a, **k))[1])
    for _ in range(10):
        chosen = rng.integers(0, len(rows), 5)
        assert np.array_equal(store.take(chosen), rows[chosen])
    assert read
    monkeypatch.setattr(pq, "ParquetFile", None)  # a small one is read as a whole
    assert np.array_equal(RowStore(data_set, "train").take(chosen), rows[chosen])


def test_a_row_group_among_many(tmp_path: Path) -> None:
    """Rows of every group of a shard, in any order."""
    ids = np.arange(40, dtype=np.int32).reshape(20, 2)
    store = RowStore(one_shard(tmp_path, ids, row_group_size=3), "train", resident_bytes=0)
    for chosen in (np.arange(20), np.arange(20)[::-1], np.asarray([19, 0, 3, 3, 2])):
        assert np.array_equal(store.take(chosen), ids[chosen])


def one_shard(folder: Path, ids: np.ndarray, row_group_size: int = 100) -> DataSet:
    """A data set of these rows that nobody has prepared."""
    rows, length = ids.shape
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), length)
    path = folder / "train-00000.parquet"
    pq.write_table(pa.table({"tokens": tokens}), path, row_group_size=row_group_size)
    shard = Shard(path.name, rows, path.stat().st_size, sha256_of(path.read_bytes()), int(ids.min()), int(ids.max()))
    split = Split(1, rows, ids.size, 0, (shard,))
    return DataSet(folder, length, TokenizerFacts("t", None, None, None), "s", "f", {"train": split})


def first_shard(folder: Path) -> Path:
    return min(folder.glob("train-*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def junk(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def other_rows(path: Path) -> None:
    """As many bytes of a valid shard with rows of another length."""
    table = pa.table({"tokens": pa.array([[1, 2]] * 3, pa.list_(pa.int32(), 2))})
    pq.write_table(table, path)
    meta = json.loads((path.parent / "meta.json").read_text())
    for shard in meta["splits"]["train"]["shards"]:
        if shard["file"] == path.name:
            shard["bytes"] = path.stat().st_size
    edit_meta(path.parent, **meta)


def empty_split(folder: Path) -> None:
    edit_meta(folder, splits={"train": {"documents": 0, "rows": 0, "tokens": 0, "dropped_tokens": 0, "shards": []}})


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "nothing in it": (lambda p: [q.unlink() for q in p.iterdir()], "is no prepared data"),
    "no meta.json": (lambda p: (p / "meta.json").unlink(), "half-written .*no meta.json"),
    "no JSON": (lambda p: (p / "meta.json").write_text("{"), "can't be read"),
    "deep JSON": (lambda p: (p / "meta.json").write_text("[" * 100_000), "can't be read"),
    "a list": (lambda p: (p / "meta.json").write_text("[]"), "can't be read"),
    "no splits": (lambda p: edit_meta(p, splits={"train": {}}), "can't be read"),
    "no length": (lambda p: edit_meta(p, length=None), "can't be read"),
    "later schema": (lambda p: edit_meta(p, schema_version=2), "schema version 2"),
    "a shard missing": (lambda p: first_shard(p).unlink(), "half-written.* is missing"),
    "a shard cut short": (lambda p: cut(first_shard(p)), "half-written.* bytes and not"),
    "no parquet": (lambda p: junk(first_shard(p)), "can't be read as parquet"),
    "other rows": (lambda p: other_rows(first_shard(p)), "does not hold"),
    "other length": (lambda p: edit_meta(p, length=8), "rows of 8 tokens and data.max_seq_len is 16"),
    "no such split": (lambda p: edit_meta(p, splits={}), "no split train"),
    "an empty split": (empty_split, "split train is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_when_it_is_opened(case: str, prepared: Path, tmp_path: Path) -> None:
    damage, said = BAD[case]
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    damage(folder)
    with pytest.raises(RunError, match=said) as error:
        batches(folder)
    assert len(str(error.value).splitlines()) == 1 and str(folder) in str(error.value)


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_damage_inside_a_shard(resident_bytes: int, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    content = bytearray(first_shard(folder).read_bytes())
    content[20:200] = bytes(180)
    first_shard(folder).write_bytes(content)
    store = RowStore(open_data_set(folder), "train", resident_bytes)
    with pytest.raises(RunError, match=r"damaged"):
        store.take(np.arange(5))


def test_ids_that_a_model_does_not_have(prepared: Path, tmp_path: Path) -> None:
    data_set = open_data_set(prepared)
    data_set.check_vocabulary("train", 62)
    with pytest.raises(RunError, match="token id 61 and the model has 61 tokens"):
        data_set.check_vocabulary("train", 61)
    negative = one_shard(tmp_path, np.asarray([[1, -2]], np.int32))
    with pytest.raises(RunError, match="token id -2"):
        negative.check_vocabulary("train", 62)


def test_another_tokenizer(prepared: Path) -> None:
    data_set = open_data_set(prepared)
    own = data_set.tokenizer
    data_set.check_tokenizer("under another name", own.sha256)
    data_set.check_tokenizer(own.name, None)
    for name, sha256 in ((own.name, "0" * 64), ("other", None), ("other", "0" * 64)):
        with pytest.raises(RunError, match="tokenizer"):
            data_set.check_tokenizer(name, sha256)


def test_a_batch_that_can_not_be_shared(prepared: Path) -> None:
    with pytest.raises(RunError, match=r"batch of 7 .* 2 processes"):
        batches(prepared, 7, process_count=2)
