"""A data block's folder: as it is, or prepared once into the cache."""

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from texts import LENGTH, documents, edit_meta, tree, unwatched, write_parquet, write_texts, write_tokenizer

from vpd.config.targets import TokenData
from vpd.data import hub
from vpd.data.data_set import open_data_set
from vpd.data.text_build import prepared_folder, text_batches
from vpd.errors import RunError, VpdError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vpd" / "tokens"


def block(source: object, tokenizer: str, **changes: object) -> TokenData:
    return TokenData(**{"dataset_name": str(source), "tokenizer_name": tokenizer, "max_seq_len": LENGTH, **changes})


def test_text_is_prepared_once(tmp_path: Path, tokenizer: str, cache: Path) -> None:
    data = block(write_texts(tmp_path / "texts", documents(60)), tokenizer)
    folder = prepared_folder(data, unwatched, vocab_size=62)
    before = tree(cache)
    assert folder.parent == cache and prepared_folder(data, unwatched) == folder and tree(cache) == before
    drawn = text_batches(data, folder, 4, seed=0, name="eval")
    assert drawn.rows == open_data_set(folder).splits["test"].rows and drawn[0].shape == (4, LENGTH)
    assert text_batches(data, folder, 4, seed=0, name="train").rows == open_data_set(folder).splits["train"].rows


def test_other_text_tokenizer_or_length_lies_elsewhere(tmp_path: Path, tokenizer: str, cache: Path) -> None:
    texts = write_texts(tmp_path / "texts", documents(60))
    other = str(write_tokenizer(tmp_path / "other.json", ["w1", "w2"]))
    folders = [
        prepared_folder(block(texts, tokenizer), unwatched),
        prepared_folder(block(texts, other), unwatched),
        prepared_folder(block(texts, tokenizer, max_seq_len=8), unwatched),
        prepared_folder(block(texts, tokenizer, eval_split="train"), unwatched),
    ]
    (texts / "00000.txt").write_text("w5")
    folders.append(prepared_folder(block(texts, tokenizer), unwatched))
    assert len(set(folders)) == 5 == len(list(cache.iterdir()))


def test_keys_that_stored_files_have(tmp_path: Path, tokenizer: str) -> None:
    texts = write_texts(tmp_path / "texts", documents(60))
    stored = block(texts, tokenizer, streaming=True, buffer_size=1000, data_files="*.txt", revision="abc")
    folder = prepared_folder(stored, unwatched)
    assert open_data_set(folder).splits.keys() == {"train", "test"}
    with pytest.raises(VpdError, match=r"\*\.md"):
        prepared_folder(block(texts, tokenizer, data_files=["*.md"]), unwatched)


def test_a_prepared_folder_is_used_as_it_is(prepared: Path, tokenizer: str, tmp_path: Path) -> None:
    assert prepared_folder(block(prepared, tokenizer), unwatched, vocab_size=62) == prepared
    for changes, said in (
        ({"max_seq_len": 8}, "max_seq_len"),
        ({"eval_split": "val"}, "no split val"),
        ({"tokenizer_name": str(write_tokenizer(tmp_path / "other.json", ["w1"]))}, "tokenizer"),
        ({"tokenizer_name": "some/tokenizer.json"}, "tokenizer"),
    ):
        with pytest.raises(RunError, match=said):
            prepared_folder(block(prepared, tokenizer, **changes), unwatched)
    assert prepared_folder(block(prepared, tokenizer, eval_split="val"), unwatched, evaluated=False) == prepared
    with pytest.raises(RunError, match="the model has 10 tokens"):
        prepared_folder(block(prepared, tokenizer), unwatched, vocab_size=10)


def test_a_tokenizer_of_the_hub_is_known_by_its_name(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network is needed for what is prepared already."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    facts = {"name": "some/tokenizer", "sha256": "0" * 64, "vocab_size": 62, "end_of_text": 0}
    edit_meta(folder, tokenizer=facts)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert prepared_folder(block(folder, "some/tokenizer"), unwatched) == folder
    with pytest.raises(RunError, match=r"some/tokenizer and data\.tokenizer_name is other/tokenizer"):
        prepared_folder(block(folder, "other/tokenizer"), unwatched)


def test_token_ids_without_their_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    path = write_parquet(tmp_path / "ids.parquet", "input_ids", [[3] * 40] * 30, pa.list_(pa.int32()))
    data = block(path, "some/tokenizer", column_name="input_ids", is_tokenized=True)
    facts = open_data_set(prepared_folder(data, unwatched, vocab_size=4)).tokenizer
    assert (facts.name, facts.sha256, facts.vocab_size) == ("some/tokenizer", None, None)
    with pytest.raises(RunError, match="token id 3 and the model has 3 tokens"):
        prepared_folder(data, unwatched, vocab_size=3)
    with pytest.raises(VpdError, match="some/tokenizer"):
        prepared_folder(block(write_texts(tmp_path / "texts", documents(30)), "some/tokenizer"), unwatched)


def test_a_prepared_folder_without_its_meta(prepared: Path, tokenizer: str, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    for path in prepared.glob("*.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="half-written"):
        prepared_folder(block(folder, tokenizer), unwatched)


def _prepare(source: str, tokenizer: str) -> str:
    return str(prepared_folder(block(source, tokenizer), unwatched))


@pytest.mark.slow
def test_several_processes_at_once(tmp_path: Path, tokenizer: str, cache: Path) -> None:
    texts = write_texts(tmp_path / "texts", documents(400))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        folders = pool.starmap(_prepare, [(str(texts), tokenizer)] * 3)
    assert len(set(folders)) == 1 and [str(p) for p in cache.iterdir()] == folders[:1]
    assert not (Path(folders[0]) / ".lock").exists()


class Hub(ModuleType):
    """In place of the library: two splits of a data set."""

    texts = documents(30)

    def load_dataset(
        self, name: str, data_files: list[str] | None, revision: str | None, split: str, streaming: bool
    ) -> Iterator[dict[str, str]]:
        assert (name, data_files, revision, streaming) == ("some/stories", ["a/*"], "abc", True)
        if split not in ("train", "val"):
            raise ValueError(f"Unknown split {split!r}\nand more")
        chosen = self.texts[:20] if split == "train" else self.texts[20:]
        return iter([{"story": text} for text in chosen])


def test_a_data_set_of_the_hub(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub("datasets"))
    monkeypatch.setattr(hub, "find_spec", lambda name: name)
    asked = {"column_name": "story", "streaming": True, "revision": "abc", "data_files": ("a/*",)}
    folder = prepared_folder(block("some/stories", tokenizer, eval_split="val", **asked), unwatched)
    local = prepared_folder(
        block(write_texts(tmp_path / "texts", Hub.texts[20:]), tokenizer, eval_split="train"), unwatched
    )
    from_hub, from_files = open_data_set(folder), open_data_set(local)
    assert [s.sha256 for s in from_hub.splits["val"].shards] == [s.sha256 for s in from_files.splits["train"].shards]
    with pytest.raises(VpdError, match=r"no split test .Unknown split 'test'.") as error:
        prepared_folder(block("some/stories", tokenizer, **asked), unwatched)
    assert "more" not in str(error.value)
    with pytest.raises(VpdError, match="no column text; its columns are story"):
        prepared_folder(
            block("some/stories", tokenizer, eval_split="val", **{**asked, "column_name": "text"}), unwatched
        )


def test_the_hub_needs_an_extra(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(VpdError, match=r"some/stories.*vpd-jax\[hub\]"):
        prepared_folder(block("some/stories", tokenizer), unwatched)
