"""A harvest against a naive pass, in shards, interrupted and gone on with; what is stored, and what is refused."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from harvests import copied, settings_of
from scipy.sparse import coo_array

from vpd import RunError, Stopped
from vpd.analysis.harvest import harvest as harvesting
from vpd.analysis.harvest.feed import feed, settings_for
from vpd.analysis.harvest.harvest import harvest
from vpd.analysis.harvest.reading import Harvest, open_harvest
from vpd.analysis.harvest.reservoir import draw, priorities
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.run import Run


def naive(run: Run, settings: Settings) -> dict[str, np.ndarray]:
    """Every position by itself, one after the other, from what the open run says of a batch."""
    n, vocab = len(run.axis), settings.vocab or 0
    take = feed(run, settings.split, settings.rows)
    found = {name: np.zeros(n, kind) for name, kind in (("firing", np.int64), ("ci", float), ("act", float))}
    found |= {"pairs": np.zeros((n, n), np.int64), "inputs": np.zeros((n, vocab), np.int64)}
    found["mass"] = np.zeros((n, vocab))
    for number in range(settings.batches):
        batch = take(number)
        ci, act = (
            run.axis.joined({site: np.asarray(x) for site, x in by_site.items()}).reshape(-1, n)
            for by_site in (run.causal_importances(batch), run.component_activations(batch))
        )
        logits = np.asarray(run.output(batch), np.float64).reshape(len(ci), -1)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for i in range(len(ci)):
            fires = [c for c in range(n) if ci[i, c] > np.float32(settings.threshold)]
            found["ci"] += ci[i]
            found["act"] += act[i]
            for c in fires:
                found["firing"][c] += 1
                for other in fires:
                    found["pairs"][c, other] += 1
                if vocab:
                    found["inputs"][c, int(np.asarray(batch).reshape(-1)[i])] += 1
                    found["mass"][c] += chances[i]
    return found


def dense_of(harvest: Harvest, file: str, names: tuple[str, str], shape: tuple[int, int]) -> np.ndarray:
    """A stored sparse matrix."""
    table = pq.read_table(harvest.path / file)
    rows, columns, counts = (table.column(name).to_numpy() for name in (*names, "count"))
    return coo_array((counts, (rows, columns)), shape=shape).toarray()


def arrays(harvest: Harvest) -> dict[str, np.ndarray]:
    """All that is stored as numbers."""
    n = len(harvest.axis)
    found = dict(harvest.totals) | {"pairs": dense_of(harvest, "cofiring.parquet", ("i", "j"), (n, n))}
    if harvest.has_tokens:
        shape = (n, len(harvest.vocabulary))
        found["inputs"] = dense_of(harvest, "input_tokens.parquet", ("component", "token"), shape)
        found["mass"] = np.zeros(shape)
        found["mass"][np.load(harvest.path / "output_rows.npy")] = np.load(harvest.path / "output_mass.npy")
    return found


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Counts exactly, sums in another order to rounding."""
    for name, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_same_windows(one: Harvest, other: Harvest) -> None:
    for place in range(len(one.axis)):
        assert one.windows(place) == other.windows(place)


def test_counts_equal_a_naive_pass(harvested: tuple[Run, Settings]) -> None:
    run, settings = harvested
    found = open_harvest(run.path, "default")
    expected = naive(run, settings)
    assert 0 < expected["firing"].sum() < len(run.axis) * settings.positions
    got = arrays(found)
    assert got["positions"] == settings.positions
    for name, stored in (("firing", "firing_counts"), ("ci", "importance_sums"), ("act", "activation_sums")):
        assert_same({name: got[stored]}, {name: expected[name]})
    assert_same(got, {name: expected[name] for name in (("pairs", "inputs", "mass") if settings.vocab else ("pairs",))})
    _check_windows(run, settings, found)


def _check_windows(run: Run, settings: Settings, found: Harvest) -> None:
    """Windows are what the run says at their place; those at the top are the best places of the best rows."""
    take, n = feed(run, settings.split, settings.rows), len(run.axis)
    batches = [take(number) for number in range(settings.batches)]
    ci, act = (
        np.concatenate(
            [
                run.axis.joined({s: np.asarray(x) for s, x in of(batch).items()}).reshape(settings.rows, -1, n)
                for batch in batches
            ]
        )
        for of in (run.causal_importances, run.component_activations)
    )
    inputs = np.concatenate([np.asarray(batch) for batch in batches])
    for place in range(n):
        windows = found.windows(place)
        fires = ci[..., place] > np.float32(settings.threshold)
        size = np.where(fires, np.abs(act[..., place]), -1).max(axis=1)
        best = sorted((row for row in range(len(size)) if size[row] >= 0), key=lambda row: -size[row])[:2]
        assert [w.row for w in windows if w.kind == "top"] == best
        sampled = {(w.row, w.position) for w in windows if w.kind == "sampled"}
        assert len(sampled) == min(4, found.firing_counts[place])
        for w in windows:
            along = slice(w.start, w.start + len(w.importances))
            assert fires[w.row, w.position] and w.start <= w.position < along.stop <= settings.length
            np.testing.assert_allclose(w.importances, ci[w.row, along, place], rtol=1e-4)
            np.testing.assert_allclose(w.activations, act[w.row, along, place], rtol=1e-4)
            own = inputs[w.row, along] if settings.vocab else inputs[w.row]
            np.testing.assert_allclose(w.inputs, own, rtol=1e-4)


def test_shards_and_interruptions_change_nothing(
    harvested: tuple[Run, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = harvested
    four = replace(settings, shards=4)
    for shard in (2, 0, 3):
        assert harvest(run, four, "four", shard, quiet=True) is None
    with pytest.raises(RunError, match=r"four is not finished; go on with vpd harvest .* --name four"):
        open_harvest(run.path, "four")
    assert harvest(run, four, "four", 1, quiet=True) is not None
    _stop_after(2, monkeypatch)
    with pytest.raises(Stopped, match="after 2 of 6 batches"):
        harvest(run, settings, "stopped", quiet=True)
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"was begun with threshold .* and not 0.75"):
        harvest(run, replace(settings, threshold=0.75), "stopped", quiet=True)
    harvest(run, settings, "stopped", quiet=True)
    whole = open_harvest(run.path, "default")
    for name in ("four", "stopped"):
        other = open_harvest(run.path, name)
        assert_same(arrays(other), arrays(whole))
        assert_same_windows(other, whole)
    assert sorted(path.name for path in (run.path / "harvest").iterdir()) == ["default", "four", "stopped"]


@pytest.mark.slow
def test_a_harvest_that_is_killed_goes_on(harvested: tuple[Run, Settings], tmp_path: Path) -> None:
    """By SIGKILL between saves, within one, and before what is older is removed: all is counted, and once."""
    run, settings = harvested
    run = copied(run, tmp_path)
    script, given = Path(__file__).with_name("killed_harvest.py"), json.dumps(asdict(settings))

    def start(at: str, nth: int) -> int:
        command = [sys.executable, str(script), str(run.path), given, "killed", at, str(nth)]
        return subprocess.run(command, capture_output=True).returncode

    for at, nth in (("add", 2), ("draft", 3), ("drop", 2)):
        assert start(at, nth) == -signal.SIGKILL
        with pytest.raises(RunError, match="killed is not finished"):
            open_harvest(run.path, "killed")
    assert start("", 0) == 0
    whole, killed = (open_harvest(run.path, name) for name in ("default", "killed"))
    assert_same(arrays(killed), arrays(whole))
    assert_same_windows(killed, whole)
    assert sorted(path.name for path in (run.path / "harvest").iterdir()) == ["default", "killed"]


def _stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes while a batch is read."""
    added = harvesting.Totals.add

    def add(self, number, batch, seen):
        added(self, number, batch, seen)
        if self.batches == batches:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(harvesting.Totals, "add", add)


def test_what_does_not_fit_in_memory_is_the_same(
    harvested: tuple[Run, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse counts of pairs, and masses in a file."""
    run, settings = harvested

    def small(*given):
        return totals(*given, dense_bytes=0, memory_bytes=0)

    totals = harvesting.Totals
    monkeypatch.setattr(harvesting, "Totals", small)
    two = replace(settings, shards=2)
    harvest(run, two, "sparse", 0, quiet=True)
    harvest(run, two, "sparse", 1, quiet=True)
    assert_same(arrays(open_harvest(run.path, "sparse")), arrays(open_harvest(run.path, "default")))
    assert not list((run.path / "harvest").glob(".*"))


def test_statistics_of_a_component(harvested: tuple[Run, Settings]) -> None:
    run, _ = harvested
    found = open_harvest(run.path, "default")
    n, N = found.firing_counts, found.positions
    place = int(np.argmin(np.where(n > 0, n, N)))
    pairs = found.pairs(place)
    assert place not in pairs.others
    np.testing.assert_allclose(pairs.statistics.precision, pairs.counts / n[place])
    np.testing.assert_allclose(pairs.statistics.recall, pairs.counts / n[pairs.others])
    one = found.components[place]
    assert (one.name, one.density) == (str(run.axis.at(place)), n[place] / N)
    if not found.has_tokens:
        return
    read, said = found.input_tokens(place), found.output_tokens(place)
    assert read.masses.sum() == n[place] and said.masses.sum() == pytest.approx(n[place], rel=1e-5)
    np.testing.assert_allclose(np.nansum(read.statistics.recall), 1)
    assert found.vocabulary[2].strip() == "w0"
    silent = np.flatnonzero(n == 0)
    if len(silent):
        assert found.output_tokens(int(silent[0])).masses.sum() == 0 and not found.windows(int(silent[0]))


def test_read_without_this_package(harvested: tuple[Run, Settings]) -> None:
    """The lines of docs/harvest.md."""
    run, _ = harvested
    folder = run.path / "harvest" / "default"
    page = (Path(__file__).parents[2] / "docs" / "harvest.md").read_text()
    for code in page.split("```python\n")[1:]:
        if "read_sql" in code:  # pandas, which is no requirement: the SQL is run without it
            (query,) = re.findall(r'read_sql\("(.*?)"', code)
            with closing(sqlite3.connect(folder / "harvest.sqlite")) as connection:
                assert len(connection.execute(query).fetchall()) == len(run.axis)
            (file,) = re.findall(r'read_parquet\(folder \+ "(.*?)"', code)
            assert pq.read_table(folder / file.strip("/")).column_names == ["i", "j", "count"]
        elif "sqlite3" in code:
            names: dict = {}
            lines = code.split("```")[0].replace("runs/glassllm/harvest/default", str(folder))
            exec(compile(lines, "docs/harvest.md", "exec"), names)
            assert len(names["components"]) == len(run.axis) and names["pairs"].num_rows > 0


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"split": "test"}, "eval or train"),
        ({"threshold": 1.0}, "never above 1"),
        ({"positions": 0}, "at least 1"),
        ({"shards": 0}, "at least 1"),
    ],
)
def test_settings_that_can_not_be(bad: dict, why: str, tiny_run: Run) -> None:
    with pytest.raises(RunError, match=why):
        settings_for(tiny_run, **{"positions": 10} | bad)


def test_what_is_refused(language_run: Run, tmp_path: Path) -> None:
    run = copied(language_run, tmp_path)
    with pytest.raises(RunError, match="no harvest yet"):
        open_harvest(run.path)
    settings = replace(settings_of(run), batches=1)
    with pytest.raises(RunError, match="no shard 3 of 2"):
        harvest(run, replace(settings, shards=2), shard=3, quiet=True)
    harvest(run, settings, quiet=True)
    path = run.path / "harvest" / "default"
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(RunError, match="is there already"):
        harvest(run, settings, quiet=True)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}
    database = sqlite3.connect(path / "harvest.sqlite")
    database.execute("PRAGMA user_version = 2")
    database.commit()
    with pytest.raises(RunError, match="has schema version 2"):
        open_harvest(run.path)
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"tokenizer_sha256": "0" * 64}))
    with pytest.raises(RunError, match="another tokenizer"):
        open_harvest(run.path)
    (path / "meta.json").write_text(json.dumps(meta))
    (path / "cofiring.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="is damaged"):
        open_harvest(run.path)
    (path / "cofiring.parquet").unlink()
    with pytest.raises(RunError, match=r"cofiring\.parquet is missing"):
        open_harvest(run.path)


def test_another_schema_of_an_unfinished_harvest(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(tiny_run, tmp_path)
    settings = settings_of(run)
    _stop_after(1, monkeypatch)
    with pytest.raises(Stopped):
        harvest(run, settings, quiet=True)
    monkeypatch.undo()
    plan = run.path / "harvest" / ".default.parts" / "plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(RunError, match="schema version 2"):
        harvest(run, settings, quiet=True)
    plan.write_text("{")
    with pytest.raises(RunError, match="can't be read"):
        harvest(run, settings, quiet=True)
    assert harvest(run, settings, force=True, quiet=True) is not None


def test_windows_of_rows_and_positions_are_drawn_uniformly() -> None:
    """Sixty-four bits that don't depend on the batch a row is in: half of them are below a half."""
    rows, places = np.divmod(np.arange(40_000), 8)
    key = draw(priorities(3, rows, places, 8), np.full(40_000, 5)).astype(np.float64) / 2.0**64
    assert abs(key.mean() - 0.5) < 5 / np.sqrt(12 * 40_000)
    assert len(np.unique(key)) == 40_000
    np.testing.assert_array_equal(priorities(3, rows[16:], places[16:], 8), priorities(3, rows, places, 8)[16:])
    assert (priorities(4, rows, places, 8) != priorities(3, rows, places, 8)).all()


def test_a_batch_of_zeros_is_asked_for_by_its_shape(tiny_run: Run) -> None:
    settings = settings_for(tiny_run, 1000)
    assert (settings.rows * settings.batches, settings.length, settings.vocab) == (1000, 1, None)
    assert feed(tiny_run, "eval", 4)(0).shape == (4, 5) and feed(tiny_run, "eval", 4)(0).dtype == jnp.float32
