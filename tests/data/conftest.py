"""Prepared folders to look at, and a call that makes one."""

from dataclasses import replace
from pathlib import Path

import pytest
from texts import LENGTH, Make, documents, unwatched, write_texts, write_tokenizer

from vpd.data.data_set import DataSet
from vpd.data.prepare import Options, prepare
from vpd.data.sources import Wanted, find_source
from vpd.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))


@pytest.fixture
def make(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Prepare a source into a folder of this test; ``unit`` is the largest unit of work in bytes."""

    def call(source: object, folder: str = "out", unit: int = 1 << 28, jobs: int = 1, **changes: object) -> DataSet:
        monkeypatch.setattr("vpd.data.sources.SMALLEST_UNIT", min(unit, 1 << 20))
        monkeypatch.setattr("vpd.data.sources.LARGEST_UNIT", unit)
        asked = {key: changes.pop(key) for key in list(changes) if key in Wanted.__dataclass_fields__}
        wanted = replace(Wanted(str(source)), **asked)
        options = Options(**{"length": LENGTH, "eval_fraction": 0.2, **changes})
        known = load_tokenizer(tokenizer)
        found = find_source(wanted, options.splits)
        return prepare(found, options, known, tokenizer, tmp_path / folder, unwatched, jobs)

    return call


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """About a hundred and fifty rows in three shards; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_texts(folder / "texts", documents(80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpd.data.sources.SMALLEST_UNIT", 4000)
        patch.setattr("vpd.data.sources.LARGEST_UNIT", 4000)
        source = find_source(Wanted(str(texts)), ("train", "test"))
    prepare(source, Options(LENGTH), load_tokenizer(tokenizer), tokenizer, folder / "out", unwatched)
    return folder / "out"
