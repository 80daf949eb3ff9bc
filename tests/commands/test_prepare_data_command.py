"""`vpd prepare-data`: what is printed, what is written, and what is refused with one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

sys.path += [str(Path(__file__).parents[1] / "data"), str(Path(__file__).parents[1] / "end_to_end")]

from texts import documents, tree, write_parquet, write_texts, write_tokenizer
from tiny_run import Called, called

from vpd.data.data_set import open_data_set

Prepare = Callable[..., Called]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts and a tokenizer in the working directory."""
    write_texts(tmp_path / "texts", documents(40))
    write_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prepare(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Prepare:
    def call(source: object, *arguments: object, tokenizer: str = "tokenizer.json", length: int = 16) -> Called:
        given = ["prepare-data", source, "-o", "out", "--tokenizer", tokenizer, "--length", length, *arguments]
        return called(monkeypatch, capfd, *given)

    return call


def test_says_what_it_made(place: Path, prepare: Prepare) -> None:
    called = prepare("texts")
    made = open_data_set(place / "out")
    assert called.code == 0 and called.out.splitlines()[-1] == "out"
    for name in ("train", "test"):
        split = made.check_split(name, 16)
        assert f"{name}: {split.rows} rows of 16 tokens from {split.documents} documents" in called.out
    assert called.err.startswith("preparing data: kB ")
    again = prepare("texts", "--quiet")
    assert (again.code, again.out, again.err) == (0, called.out, "")


def test_every_option(place: Path, prepare: Prepare) -> None:
    (place / "all.txt").write_text("|".join(documents(50)))
    called = prepare("all.txt", "--separator", "|", "--eval-fraction", "0.5", "--eval-split", "val", "--jobs", "2")
    assert called.code == 0, called.err
    made = open_data_set(place / "out")
    assert {name: split.documents for name, split in made.splits.items()} == {"train": 25, "val": 25}


CASES: dict[str, tuple[tuple, dict, str]] = {
    "no source": (("nothing.txt",), {}, "nothing.txt: there is no such file"),
    "no pattern": (("*.md",), {}, "there is no such file, folder or pattern"),
    "no package": (("package:not_there",), {}, "no installed package not_there"),
    "no text in the package": (("package:json",), {}, "there is no *.parquet or *.txt"),
    "empty folder": (("empty",), {}, "there is no *.parquet or *.txt"),
    "no such files": (("texts", "--data-files", "*.parquet"), {}, "there is no *.parquet"),
    "no tokenizer": (("texts",), {"tokenizer": "no.json"}, "tokenizer no.json: there is no such file"),
    "bad tokenizer": (("texts",), {"tokenizer": "texts/00000.txt"}, "is no JSON"),
    "rows too long": (("texts",), {"length": 100_000}, "got no row of 100000 tokens"),
    "no row": (("texts",), {"length": 0}, "--length"),
    "all to evaluate on": (("texts", "--eval-fraction", "1"), {}, "--eval-fraction"),
    "not a number": (("texts", "--eval-fraction", "nan"), {}, "--eval-fraction"),
    "a split that is a path": (("texts", "--eval-split", "../a"), {}, "--eval-split"),
    "empty separator": (("texts", "--separator", ""), {}, "--separator"),
    "no column": (("a.parquet",), {}, "a.parquet: there is no column text; its columns are story"),
    "no text": (("a.parquet", "--column", "story", "--tokenized"), {}, "lists of token ids"),
    "no ids": (("b.parquet", "--column", "ids"), {}, "not text"),
    "no parquet": (("c.parquet",), {}, "not a readable parquet file"),
    "no UTF-8": (("d.txt",), {}, "not UTF-8"),
    "ids in text files": (("texts", "--tokenized"), {}, "holds no token ids"),
    "ids of another tokenizer": (("b.parquet", "--column", "ids", "--tokenized"), {}, "token id 99"),
    "a device": (("/dev/null",), {}, "/dev/null"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(case: str, place: Path, prepare: Prepare) -> None:
    arguments, options, said = CASES[case]
    (place / "empty").mkdir()
    write_parquet(place / "a.parquet", "story", documents(5))
    write_parquet(place / "b.parquet", "ids", [[2] * 40, [99] * 40], pa.list_(pa.int32()))
    (place / "c.parquet").write_bytes(b"junk")
    (place / "d.txt").write_bytes(b"\xff")
    before = tree(place)
    called = prepare(*arguments, "--quiet", **options)
    assert (called.code, called.out) == (2, "")
    assert said in called.err and "Traceback" not in called.err
    if case != "no row":  # the parser's own, in its own words
        assert len(called.err.splitlines()) == 1 and called.err.startswith("vpd: ")
    assert tree(place) == before


def test_a_folder_of_something_else(place: Path, prepare: Prepare) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine").touch()
    before = tree(place)
    called = prepare("texts")
    assert (called.code, called.out) == (2, "") and "out exists and holds something else" in called.err
    assert tree(place) == before


def test_a_folder_prepared_otherwise(place: Path, prepare: Prepare) -> None:
    prepare("texts")
    before = tree(place)
    called = prepare("texts", length=8)
    assert called.code == 2 and "another source or with another tokenizer, length or split" in called.err
    assert tree(place) == before


def test_where_no_folder_can_be_made(place: Path, prepare: Prepare) -> None:
    called = prepare("texts", "-o", "texts/00000.txt/out")
    assert called.code == 2 and "no writable folder" in called.err
