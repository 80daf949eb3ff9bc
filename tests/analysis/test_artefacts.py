"""Folders that analyses write, and names of subcomponents."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vpd import RunError
from vpd.analysis.artefacts import META, Origin, artefact_path, new_artefact, open_artefact
from vpd.analysis.names import FlatAxis, Subcomponent, parse_subcomponent
from vpd.analysis.run import Run

ORIGIN = Origin("toy", 20, {"h.0.up": 3, "h.10.up": 2})


def written(run: Path, name: str, content: str = "1", force: bool = False) -> Path:
    path = artefact_path(run, "harvest", name, force)
    with new_artefact(path, 1, ORIGIN, {"positions": 7}) as folder:
        (folder / "content").write_text(content)
    return path


def test_an_artefact_says_what_it_was_made_from(tmp_path: Path) -> None:
    path = written(tmp_path, "first")
    for name in ("first", None):
        found = open_artefact(tmp_path, "harvest", 1, name)
        assert (found.path, found.origin) == (path, ORIGIN)
        assert found.facts["positions"] == 7 and list(found.origin.sizes) == list(ORIGIN.sizes)


def test_a_name_that_is_taken_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = written(tmp_path, "first")
    with pytest.raises(RunError, match="--force"):
        written(tmp_path, "first", "2")
    assert (path / "content").read_text() == "1"
    written(tmp_path, "first", "2", force=True)
    assert (path / "content").read_text() == "2" and len(list(path.parent.iterdir())) == 1


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "first")
    with pytest.raises(ZeroDivisionError), new_artefact(path, 1, ORIGIN, {}) as folder:
        (folder / "content").write_text("half")
        raise ZeroDivisionError
    assert [entry.name for entry in path.parent.iterdir()] == ["first"] and (path / "content").read_text() == "1"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../b", "/a"])
def test_names_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be the name"):
        artefact_path(tmp_path, "harvest", name)


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no harvest yet"):
        open_artefact(tmp_path, "harvest", 1)
    path = written(tmp_path, "first")
    written(tmp_path, "second")
    with pytest.raises(RunError, match="several harvest: first, second"):
        open_artefact(tmp_path, "harvest", 1)
    with pytest.raises(RunError, match="does not exist; there are first, second"):
        open_artefact(tmp_path, "harvest", 1, "third")
    (tmp_path / "harvest" / "third").mkdir()
    with pytest.raises(RunError, match="is not finished"):
        open_artefact(tmp_path, "harvest", 1, "third")
    with pytest.raises(RunError, match="no run directory"):
        open_artefact(tmp_path / "other", "harvest", 1)
    meta = json.loads((path / META).read_text())
    (path / META).write_text(json.dumps(meta | {"schema_version": 2}))
    with pytest.raises(RunError, match="schema version 2"):
        open_artefact(tmp_path, "harvest", 1, "first")
    for damaged in ("{", "[]", "{}", json.dumps(meta | {"sites": 3})):
        (path / META).write_text(damaged)
        with pytest.raises(RunError, match="can't be read"):
            open_artefact(tmp_path, "harvest", 1, "first")


def test_subcomponents_in_a_row() -> None:
    axis = FlatAxis(ORIGIN.sizes)
    named = [Subcomponent(site, i) for site, C in ORIGIN.sizes.items() for i in range(C)]
    assert [axis.at(i) for i in range(len(axis))] == named and [axis.place(one) for one in named] == list(range(5))
    row = np.arange(10).reshape(2, 5)
    parts = axis.split(row)
    assert parts["h.10.up"].tolist() == [[3, 4], [8, 9]]
    assert (axis.joined(parts) == row).all()


def test_parsed_names() -> None:
    assert parse_subcomponent("h.10.up:1", ORIGIN.sizes) == Subcomponent("h.10.up", 1)
    assert str(Subcomponent("h.10.up", 1)) == "h.10.up:1"
    for text, why in (
        ("h.10.up", "SITE:INDEX"),
        ("h.10.up:-1", "SITE:INDEX"),
        (":1", "not a decomposed site"),
        ("h.1.up:1", "the sites are h.0.up, h.10.up"),
        ("h.10.up:2", "0 to 1"),
    ):
        with pytest.raises(RunError, match=why):
            parse_subcomponent(text, ORIGIN.sizes)


def test_component_activations(tiny_run: Run) -> None:
    batch = jnp.linspace(0, 1, 20).reshape(4, 5)
    found = tiny_run.component_activations(batch)
    pieces = tiny_run.components("linear1")
    expected = (batch @ pieces.V) * jnp.linalg.norm(pieces.U, axis=1)
    np.testing.assert_allclose(found["linear1"], expected, rtol=1e-5, atol=1e-6)
    assert list(found) == list(tiny_run.sites) and found["linear2"].shape == (4, 6)
    assert tiny_run.origin == Origin(tiny_run.path.name, 20, {"linear1": 6, "linear2": 6})
    with pytest.raises(RunError, match="reads no text"):
        _ = tiny_run.tokenizer
