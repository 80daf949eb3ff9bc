"""Whatever is put at any place of a run file, it is read or refused in one sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from good_file import GOOD, as_bytes, changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_files import assert_one_sentence

from vpd.config import read_run_file
from vpd.config.values import is_block, is_list
from vpd.errors import ConfigError


def _paths(node: object, prefix: str = "") -> Iterator[str]:
    children = node.items() if is_block(node) else enumerate(node) if is_list(node) else ()
    for key, child in children:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path
        yield from _paths(child, path)


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("linear1"), st.dates()
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(sorted(_paths(GOOD))), value=_values, unknown=st.booleans())
def test_a_value_anywhere(path: str, value: object, unknown: bool) -> None:
    owner, _, last = path.rpartition(".")
    _read(changed(f"{owner}.x" if unknown and owner and not last.isdigit() else path, value))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 3000), removed=st.integers(0, 30), put=st.binary(max_size=6))
def test_bytes_anywhere(at: int, removed: int, put: bytes, tmp_path: Path) -> None:
    content = as_bytes(GOOD)
    path = tmp_path / "run.yaml"
    path.write_bytes(content[:at] + put + content[at + removed :])
    _read(path)


def _read(source: Any) -> None:
    try:
        read_run_file(source)
    except ConfigError as error:
        assert_one_sentence(str(error), "")
