"""`vpd config convert`: what is printed, what is written, and what is not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.append(str(Path(__file__).parents[1] / "config"))  # good_file.py and older_files.py

from good_file import GOOD, Document, as_bytes
from older_files import FLAT, KNOTS

from vpd import cli
from vpd.config import read_run_file


class Called(NamedTuple):
    code: int
    out: str
    err: str


Convert = Callable[..., Called]
BAD: Document = {**FLAT, "stesp": 5, "batch_size": 1.5}


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Convert:
    def call(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["vpd", "config", "convert", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        return Called(code if isinstance(code, int) else 0, *capfd.readouterr())

    return call


@pytest.fixture
def older(tmp_path: Path) -> Callable[[Document], Path]:
    def write(document: Document) -> Path:
        path = tmp_path / "older.yaml"
        path.write_bytes(as_bytes(document))
        return path

    return write


@pytest.mark.parametrize("document", [FLAT, KNOTS], ids=["flat", "knots"])
def test_writes_a_run_file(document: Document, older: Callable[[Document], Path], convert: Convert) -> None:
    source = older(document)
    new = source.with_name("new.yaml")
    called = convert(source, "-o", new)
    assert (called.code, called.err) == (0, "")
    assert called.out.splitlines()[-1] == str(new)
    assert "renamed" in called.out and "look at: " in called.out
    assert read_run_file(new, supported=False).config.pd.steps == {**FLAT, **document.get("pd", {})}["steps"]
    again = convert(new)
    assert again.code == 0 and "a run file in today's vocabulary already" in again.out


def test_prints_it_where_no_file_is_named(older: Callable[[Document], Path], convert: Convert) -> None:
    source = older(KNOTS)
    called = convert(source)
    assert called.code == 0
    assert called.out.startswith("run_name: small-knots\n")
    assert "knots vocabulary" in called.err
    printed = source.with_name("printed.yaml")
    printed.write_text(called.out)
    assert convert(source, "-o", source.with_name("new.yaml")).code == 0
    assert printed.read_text() == source.with_name("new.yaml").read_text()


@pytest.mark.parametrize("to_file", [True, False])
def test_refuses_everything_at_once_and_writes_nothing(
    to_file: bool, older: Callable[[Document], Path], convert: Convert
) -> None:
    source = older(BAD)
    before = sorted(source.parent.iterdir())
    called = convert(source, *(["-o", source.with_name("new.yaml")] if to_file else []))
    assert called.code == 2
    report = called.out if to_file else called.err
    assert "2 refused" in report.splitlines()[0]
    assert "\nrefused: stesp: no known field of the flat vocabulary; nearest known spelling: steps\n" in report
    assert "\nrefused: batch_size: expected an integer" in report
    assert "│ taken " in report
    last = called.err.splitlines()[-1]
    assert last.startswith("vpd: ") and "stesp" in last and "batch_size" in last and "nothing was written" in last
    assert to_file or called.out == ""
    assert sorted(source.parent.iterdir()) == before


def test_json_is_one_object(older: Callable[[Document], Path], convert: Convert) -> None:
    source = older(FLAT)
    called = convert(source, "--json")
    record = json.loads(called.out)
    assert (record["vocabulary"], record["converted"], record["written"]) == ("flat", True, None)
    assert {"kind": "taken", "old": "seed", "new": "pd.seed", "says": "same name, same meaning"} in record["fields"]
    assert record["run_file"].startswith("target:\n") and record["notices"]
    written = json.loads(convert(source, "--json", "-o", source.with_name("new.yaml")).out)
    assert written["run_file"] is None and Path(written["written"]).read_text() == record["run_file"]
    refused = convert(older(BAD), "--json")
    record = json.loads(refused.out)
    assert refused.code == 2 and not record["converted"] and record["run_file"] is None
    assert {row["old"] for row in record["fields"] if row["kind"] == "refused"} == {"stesp", "batch_size"}
    native = json.loads(convert(older(GOOD), "--json").out)
    assert (native["vocabulary"], native["converted"]) == ("native", False)


def test_a_file_that_is_there_is_kept(older: Callable[[Document], Path], convert: Convert) -> None:
    source = older(KNOTS)
    there = source.with_name("new.yaml")
    there.write_text("precious")
    called = convert(source, "-o", there)
    assert called.code == 2 and "--force" in called.err and there.read_text() == "precious"
    assert convert(source, "-o", there, "--force").code == 0
    assert read_run_file(there, supported=False).config.run_name == "small-knots"
    there.write_text("precious")
    assert convert(older(BAD), "-o", there, "--force").code == 2
    assert there.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "out", "says"),
    [
        (None, None, "no such file"),
        (b"a: [1\n", None, "not valid YAML"),
        (b"\x00\xff", None, "older.yaml"),
        (b"- 1\n", None, "block of keys"),
        (b"num_iterations: 5\nmodel: {n_layer: 2}\n", None, "older pretraining file"),
        (b"pd: {}\n", None, "target: required"),
        (as_bytes(FLAT), ".", "is a directory"),
        (as_bytes(FLAT), "nowhere/new.yaml", "no such folder"),
    ],
)
def test_mistakes(content: bytes | None, out: str | None, says: str, tmp_path: Path, convert: Convert) -> None:
    source = tmp_path / "older.yaml"
    if content is not None:
        source.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    called = convert(source, *([] if out is None else ["-o", tmp_path / out]))
    assert (called.code, called.out) == (2, "")
    assert says in called.err.splitlines()[-1] and "Traceback" not in called.err
    assert sorted(tmp_path.rglob("*")) == before


def test_training_on_an_older_file_names_the_way_out(
    older: Callable[[Document], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vpd", "train", str(older(FLAT))])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "vpd config convert FILE" in capfd.readouterr().err
