"""Every damaged or silly run file is refused in one sentence that names the key and a way out."""

import re
from pathlib import Path

import pytest
from bad_files import BAD_FILES
from good_file import GOOD, INDUCTION, RESID, Document, as_bytes

from vpd.config import read_run_file
from vpd.errors import ConfigError

_QUOTED = re.compile(r'"(\\.|[^"\\])*"|`[^`]*`')


def test_there_are_many_and_all_have_names() -> None:
    assert len(BAD_FILES) >= 100
    assert len({name for name, _, _ in BAD_FILES}) == len(BAD_FILES)


@pytest.mark.parametrize("good", [GOOD, RESID, INDUCTION], ids=["tms", "resid_mlp", "induction"])
def test_what_they_are_made_from_is_read(good: Document, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(as_bytes(good))
    assert read_run_file(path).config.eval is None or good["eval"]


@pytest.mark.parametrize(("name", "content", "key"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_is_refused_in_one_sentence(name: str, content: bytes, key: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_run_file(path)
    assert_one_sentence(str(caught.value), key)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\nb.yaml", "nul\0.yaml", "x" * 400])
def test_a_path_that_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_file(str(tmp_path / name))
    assert_one_sentence(str(caught.value), "")


def assert_one_sentence(message: str, key: str) -> None:
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 700
    bare = _QUOTED.sub("value", message)
    assert message.endswith(".") and not re.search(r"[.!?]\s", bare), message
    place, _, rest = message.partition(": ")
    assert key in place, message
    said, _, way_out = rest.rpartition("; ")
    assert said and way_out, message
