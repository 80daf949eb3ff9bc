"""``vpd cluster`` from the command line to the files it writes, how they are read, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_run import Called, called

from vpd import RunError, load_clusters
from vpd.analysis.clustering.collect import Sampling, collect
from vpd.analysis.run import Run, open_run

Cluster = Callable[..., Called]
EVERY = ("--split", "train", "--positions", 300, "--threshold", 0, "--min-firings", 1)


@pytest.fixture(scope="module")
def folder(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, to write into."""
    return Path(shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("clusters") / "tiny"))


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Cluster]:
    yield lambda *arguments: called(monkeypatch, capfd, "cluster", folder, *arguments)


def test_written_and_read(cluster: Cluster, folder: Path) -> None:
    done = cluster(*EVERY, "--alpha", 1, "--alpha", 4, "--sampler", "mcmc", "--temperature", 0.3, "--seeds", 3)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == str(folder / "clusters" / "default")
    assert "300/300" in done.err and "merging" in done.err
    place = folder / "clusters" / "default"
    pictures = {path.name for path in (place / "figures").iterdir()}
    assert pictures == {"cost_curve.png", "merge_tree.png", "firing_together.png", "co_membership.png"}

    facts = json.loads((place / "meta.json").read_text())
    assert [(c["alpha"], c["seed"]) for c in facts["clusterings"]] == [(a, s) for a in (1, 4) for s in range(3)]
    members, clusters = (pq.read_table(place / f"{name}.parquet").to_pylist() for name in ("members", "clusters"))
    read = load_clusters(folder, alpha=4.0, seed=2)
    assert len(read) == facts["clusterings"][5]["clusters"]
    here = [row for row in members if row["alpha"] == 4 and row["seed"] == 2]
    assert len(here) == facts["subcomponents"] == len(read.subcomponents)
    for row in here:
        assert read.cluster_of(row["site"], row["index"]) == row["cluster"]
    for row in clusters:
        if (row["alpha"], row["seed"]) == (4, 2):
            assert row["size"] == len(read.members(row["cluster"]))
    # The densities are those of the firings at the positions that meta.json names.
    run = open_run(folder)
    firings = collect([run], Sampling(**facts["sampling"]))[0]
    dense = firings.matrix().toarray()
    for row in here:
        one = run.axis.starts[row["site"]] + row["index"]
        assert row["density"] == pytest.approx(dense[:, one].mean())
    largest = [run.axis.place(one) for one in read.members(0)]
    row = next(r for r in clusters if (r["alpha"], r["seed"], r["cluster"]) == (4, 2, 0))
    fires = dense[:, largest].any(axis=1)
    assert row["density"] == pytest.approx(fires.mean())
    assert row["cohesion"] == pytest.approx(dense[fires][:, largest].mean())

    assert len(read.at(1)) == 1 and len(read.at(len(read.subcomponents))) == len(read.subcomponents)
    assert load_clusters(folder).alpha == 1
    assert sum(c["representative"] for c in facts["clusterings"]) == 2


def test_nothing_is_overwritten(cluster: Cluster, folder: Path) -> None:
    assert cluster(*EVERY, "--name", "once", "--json", "--quiet").code == 0
    before = (folder / "clusters" / "once" / "meta.json").read_bytes()
    again = cluster(*EVERY, "--name", "once")
    assert again.code == 2 and "there already" in again.err and len(again.err.splitlines()) == 1
    assert (folder / "clusters" / "once" / "meta.json").read_bytes() == before
    forced = cluster(*EVERY, "--name", "once", "--force", "--json", "--quiet", "--alpha", 2)
    assert json.loads(forced.out)["merging"]["alphas"] == [2.0]
    assert load_clusters(folder, "once").alpha == 2


def test_against_itself(cluster: Cluster, folder: Path) -> None:
    assert cluster(*EVERY, "--name", "same", "--json", "--quiet").code == 0
    found = json.loads(cluster("--against", folder, "--name", "same", "--json", "--quiet").out)
    assert found["agreement"] == pytest.approx(1)
    assert all(pair["here"] == pair["there"] for pair in found["pairs"] if pair["jaccard"] < 1)


def test_against_another_checkpoint(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """The agreement is that of the dense firings of both, by every way to pair the clusters."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert cluster(*EVERY, "--name", "then", "--step", 10, "--alpha", 3, "--json", "--quiet").code == 0
    (other / "clusters").mkdir(exist_ok=True)
    shutil.move(folder / "clusters" / "then", other / "clusters" / "then")
    assert cluster(*EVERY, "--name", "then", "--alpha", 3, "--json", "--quiet").code == 0
    found = json.loads(cluster("--against", other, "--name", "then", "--json", "--quiet").out)

    places, fires = (folder, other), []
    runs = [open_run(folder), open_run(other, 10)]
    firings = collect(runs, Sampling(300, 0.0, "train", min_firings=1))
    for run, place, seen in zip(runs, places, firings, strict=True):
        clusters, dense = load_clusters(place, "then"), seen.matrix().toarray().astype(bool)
        members = [[run.axis.place(one) for one in clusters.members(k)] for k in range(len(clusters))]
        fires.append(np.stack([dense[:, some].any(axis=1) for some in members]))
    for pair in found["pairs"]:
        here, there = fires[0][pair["here"]], fires[1][pair["there"]]
        assert pair["jaccard"] == pytest.approx((here & there).sum() / (here | there).sum())
    weights = [fires[0][p["here"]].mean() + fires[1][p["there"]].mean() for p in found["pairs"]]
    total = fires[0].mean(axis=1).sum() + fires[1].mean(axis=1).sum()
    agreement = np.dot([p["jaccard"] for p in found["pairs"]], weights) / total
    assert found["agreement"] == pytest.approx(agreement) and agreement < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sampler", "greedy"), "no sampler 'greedy'; they are range, mcmc, exp_rank"),
        (("--alpha", -1), "0 or more, not -1"),
        (("--alpha", 1, "--alpha", 1), "give each one once"),
        (("--temperature", -0.1), "0 or more, not -0.1"),
        (("--temperature", 2), "fraction of the range"),
        (("--seeds", 2), "at temperature 0 all seeds make the same"),
        (("--threshold", 1), "no causal importance is above 1"),
        (("--always-on", 0), "no fraction of the positions"),
        (("--positions", 0), "at least 1"),
        (("--split", "test"), "no split 'test'"),
        (("--split", "eval"), "has no evaluation data.*--split train"),
        (("--split", "train", "--positions", 64, "--threshold", 0.999999), "can be clustered"),
        (("--name", "a/b"), "can't be the name of a folder"),
    ],
)
def test_refusals(cluster: Cluster, folder: Path, arguments: tuple[object, ...], said: str) -> None:
    done = cluster("--name", "refused", *arguments)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("vpd: ")]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert re.search(said, lines[0]), lines[0]
    assert not list(folder.glob("clusters/*refused*"))


def test_reading_refuses(cluster: Cluster, folder: Path) -> None:
    assert cluster(*EVERY, "--name", "read", "--json", "--quiet").code == 0
    clusters = load_clusters(folder, "read")
    with pytest.raises(RunError, match=r"does not exist; there are .*read"):
        load_clusters(folder, "absent")
    with pytest.raises(RunError, match="no clustering of that alpha and seed; there are alpha 1 seed 0"):
        load_clusters(folder, "read", alpha=3.0)
    with pytest.raises(RunError, match="not a decomposed site"):
        clusters.cluster_of("linear9", 0)
    with pytest.raises(RunError, match="subcomponents 0 to 5"):
        clusters.cluster_of("linear1", 6)
    with pytest.raises(RunError, match="no cluster 99"):
        clusters.members(99)
    with pytest.raises(RunError, match="not 0"):
        clusters.at(0)
    meta = folder / "clusters" / "read" / "meta.json"
    meta.write_text(meta.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(RunError, match="schema version 2"):
        load_clusters(folder, "read")


def test_positions_are_seeded(folder: Path) -> None:
    run = open_run(folder)
    first, second = (collect([run], Sampling(100, 0.0, "train", min_firings=1))[0] for _ in range(2))
    np.testing.assert_array_equal(first.fired, second.fired)
    assert first.positions == 100
