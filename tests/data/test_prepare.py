"""From text to shards: nothing lost, split by document, the same bytes however they are made."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import LENGTH, Make, documents, expected_ids, tree, write_parquet, write_texts

from vpd.data import prepare as prepare_module
from vpd.data.data_set import DataSet, open_data_set, token_range
from vpd.data.folder_lock import LOCK, held
from vpd.data.rows import Rows, is_held_out
from vpd.errors import RunError, VpdError


def columns(made: DataSet, split: str) -> dict[str, list]:
    tables = [pq.read_table(made.path / shard.file) for shard in made.splits[split].shards]
    return pa.concat_tables(tables).to_pydict()


def test_text_to_rows_and_back(tmp_path: Path, make: Make) -> None:
    texts = documents(60)
    made = make(write_texts(tmp_path / "texts", texts))
    ids = expected_ids(texts)
    held_out = [k for k in range(60) if is_held_out(k, 0.2)]
    assert 8 <= len(held_out) <= 16
    for split, members in (("test", held_out), ("train", [k for k in range(60) if k not in held_out])):
        joined = [token for k in members for token in ids[k]]
        rows = columns(made, split)
        whole = len(joined) // LENGTH * LENGTH
        assert [token for row in rows["tokens"] for token in row] == joined[:whole]
        facts = made.splits[split]
        assert (facts.documents, facts.rows, facts.tokens) == (len(members), whole // LENGTH, whole)
        assert facts.dropped_tokens == len(joined) - whole
        owners = [k for k in members for _ in ids[k]]
        for number, (present, starts) in enumerate(zip(rows["documents"], rows["starts"], strict=True)):
            own = owners[number * LENGTH : (number + 1) * LENGTH]
            assert present == list(dict.fromkeys(own))
            assert starts == [own.index(k) for k in present]


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 6))
def test_rows_of_any_documents(lengths: list[int], length: int) -> None:
    rows = Rows(length)
    ids = [np.full(n, 100 + k, np.int32) for k, n in enumerate(n for n in lengths if n)]
    for number, part in enumerate(ids):
        rows.add(number, part)
    table = rows.table()
    flat = np.concatenate([np.zeros(0, np.int32), *ids])
    assert np.array_equal(table["tokens"].combine_chunks().flatten().to_numpy(), flat[: len(flat) // length * length])
    assert rows.dropped == len(flat) % length
    for row in table.to_pylist():
        assert [100 + k for k in row["documents"]] == list(dict.fromkeys(row["tokens"]))
        assert row["starts"] == [row["tokens"].index(100 + k) for k in row["documents"]]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_split_is_fair_from_few_documents_on(fraction: float) -> None:
    for count in (40, 100, 1000):
        share = sum(is_held_out(k, fraction) for k in range(count)) / count
        assert abs(share - fraction) < 2 / count + 0.01


def test_documents_of_all_kinds_of_files_are_the_same(tmp_path: Path, make: Make) -> None:
    texts = documents(40)
    several = make(write_texts(tmp_path / "texts", texts), "a")
    (tmp_path / "all.txt").write_text("\n---\n".join(texts))
    one = make(tmp_path / "all.txt", "b", separator="\n---\n")
    table = make(write_parquet(tmp_path / "all.parquet", "story", texts), "c", column="story")
    pattern = make(tmp_path / "te*" / "*.txt", "d")
    assert columns(several, "train") == columns(one, "train") == columns(table, "train") == columns(pattern, "train")
    assert columns(several, "test") == columns(one, "test") == columns(table, "test") == columns(pattern, "test")


def test_token_lists_are_cut_by_themselves(tmp_path: Path, make: Make) -> None:
    lists = [list(range(2, 2 + n)) for n in (3 * LENGTH, LENGTH + 5, LENGTH - 1, 2 * LENGTH)] + [None, []]
    path = write_parquet(tmp_path / "ids.parquet", "input_ids", lists, pa.list_(pa.int32()), group=2)
    made = make(path, column="input_ids", tokenized=True, eval_fraction=0.0)
    assert list(made.splits) == ["train"]
    wanted = [lst[k : k + LENGTH] for lst in lists if lst for k in range(0, len(lst) - LENGTH + 1, LENGTH)]
    assert columns(made, "train")["tokens"] == wanted
    assert columns(made, "train")["documents"] == [[0], [0], [0], [1], [3], [3]]
    assert made.splits["train"].dropped_tokens == 5 + LENGTH - 1


@pytest.mark.parametrize("by", ["names", "folders"])
def test_splits_by_name(by: str, tmp_path: Path, make: Make) -> None:
    texts = documents(20)
    folder = tmp_path / "texts"
    for k, text in enumerate(texts):
        split = "test" if k >= 15 else "train"
        path = folder / (f"{split}-{k:02d}.txt" if by == "names" else f"{split}/{k:02d}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "about.txt").write_text("w1 " * 100)
    made = make(folder)
    assert (made.splits["train"].documents, made.splits["test"].documents) == (15, 5)
    only = make(folder, "only", data_files=("*about*",), eval_fraction=0.0)
    assert only.splits["train"].documents == 1


def test_one_split_of_everything(tmp_path: Path, make: Make) -> None:
    made = make(write_texts(tmp_path / "texts", documents(20)), eval_split="train")
    assert list(made.splits) == ["train"] and made.splits["train"].documents == 20


def test_the_same_bytes_again_and_in_several_processes(tmp_path: Path, make: Make) -> None:
    texts = write_texts(tmp_path / "texts", documents(60))
    first = make(texts, "a", unit=1000)
    assert len(first.splits["train"].shards) > 5
    make(texts, "b", unit=1000)
    make(texts, "c", unit=1000, jobs=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_interrupted_call_is_gone_on_with(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = write_texts(tmp_path / "texts", documents(60))
    make(texts, "whole", unit=1000)
    original, made = prepare_module.prepare_unit, []

    def stopping(job: object, number: int, unit: object) -> Iterator[int]:
        made.append(number)
        if len(made) == 5:
            raise KeyboardInterrupt
        yield from original(job, number, unit)

    monkeypatch.setattr(prepare_module, "prepare_unit", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(texts, unit=1000)
    assert not (tmp_path / "out").exists()
    cut_short = tmp_path / ".out.partial" / "train-00002.parquet"
    cut_short.write_bytes(cut_short.read_bytes()[:-10])
    make(texts, unit=1000)
    assert made[:6] == [0, 1, 2, 3, 4, 2] and 0 not in made[5:]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_was_begun_from_other_text_is_not_mixed_in(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_texts(tmp_path / "texts", documents(60))
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_collected", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(texts, unit=1000)
    assert len(list((tmp_path / ".out.partial").iterdir())) > 20
    (texts / "00000.txt").write_text("w3 " * 50)
    make(texts, unit=1000)
    make(texts, "anew", unit=1000)
    assert tree(tmp_path / "out") == tree(tmp_path / "anew")


def test_a_finished_folder_stays_or_is_refused(tmp_path: Path, make: Make) -> None:
    texts = write_texts(tmp_path / "texts", documents(30))
    make(texts)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    make(texts)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(RunError, match="another source"):
        make(texts, length=8)
    os.utime(texts / "00000.txt", (1, 1))
    with pytest.raises(RunError, match="another source"):
        make(texts)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(RunError, match="something else"):
        make(texts, "full")
    (tmp_path / "empty").mkdir()
    assert make(texts, "empty").splits["train"].rows


def test_one_process_at_a_time(tmp_path: Path, make: Make) -> None:
    texts = write_texts(tmp_path / "texts", documents(30))
    partial = tmp_path / ".out.partial"
    with held(partial, wait=False, done=lambda: False) as is_ours:
        assert is_ours
        with pytest.raises(RunError, match="another process"):
            make(texts)
        shutil.rmtree(partial)
    make(texts)
    assert not (tmp_path / "out" / LOCK).exists()
    with held(partial, wait=False, done=lambda: True) as is_ours:
        assert not is_ours
    assert not partial.exists()


@pytest.mark.parametrize(
    ("texts", "changes", "said"),
    [
        (["w1 w2"], {}, "got no row"),
        ([" ", ""], {}, "got no row"),
        (["w1 " * 100], {}, "test got no row of 16 tokens .*--separator"),
        (["w1 " * 100], {"tokenized": True}, "holds no token ids"),
    ],
)
def test_too_little_text(texts: list[str], changes: dict, said: str, tmp_path: Path, make: Make) -> None:
    with pytest.raises(VpdError, match=said):
        make(write_texts(tmp_path / "texts", texts), **changes)
    assert [p.name for p in tmp_path.iterdir() if p.name != "texts"] == []


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("ids", "said"), [([[2] * 99, [-1] * 99], "token id -1"), ([[2] * 99, [62] * 99], "token id 62 .* 62 tokens")]
)
def test_bad_ids(ids: list[list[int]], said: str, jobs: int, tmp_path: Path, make: Make) -> None:
    path = write_parquet(tmp_path / "ids.parquet", "ids", ids, pa.list_(pa.int64()), group=1)
    with pytest.raises(VpdError, match=said):
        make(path, column="ids", tokenized=True, eval_fraction=0.0, unit=10, jobs=jobs)
    assert [p.name for p in tmp_path.iterdir()] == ["ids.parquet"]


def test_a_damaged_source(tmp_path: Path, make: Make) -> None:
    path = write_parquet(tmp_path / "a.parquet", "text", documents(500))
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)
    with pytest.raises(VpdError, match=r"a\.parquet: can't be read"):
        make(path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(VpdError, match="not UTF-8"):
        make(tmp_path / "b.txt")


@pytest.mark.parametrize("has_statistics", [True, False])
def test_the_range_of_ids(has_statistics: bool, tmp_path: Path) -> None:
    rows = pa.array([[5, 7], [3, 4], [9, 6]], pa.list_(pa.int32(), 2))
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"tokens": rows}), path, row_group_size=1, write_statistics=has_statistics)
    assert token_range(path) == (3, 9)


def test_what_meta_says_is_what_lies_there(prepared: Path) -> None:
    made = open_data_set(prepared)
    assert {p.name for p in prepared.iterdir()} == {"meta.json"} | {
        shard.file for split in made.splits.values() for shard in split.shards
    }
    for name in made.splits:
        split = made.check_split(name, LENGTH)
        assert sum(shard.rows for shard in split.shards) == split.rows
        for shard in split.shards:
            assert token_range(prepared / shard.file) == (shard.smallest, shard.largest)
