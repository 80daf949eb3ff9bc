"""``vpd sweep``: a product of grids as run files, all or nothing."""

import json
from pathlib import Path

import pytest
from tiny_run import Vpd, one_line, tree, write_file

from vpd import read_run_file

COEFF = "pd.loss_metrics.ImportanceMinimalityLoss.coeff"


def test_every_point_is_a_complete_run_file(tmp_path: Path, vpd: Vpd) -> None:
    folder = tmp_path / "sweep"
    called = vpd("sweep", write_file(tmp_path), "--grid", f"{COEFF}=1e-4,3e-4", "--grid", "pd.seed=0,1", "-o", folder)
    assert (called.code, called.err) == (0, "")
    assert called.out.splitlines()[-1] == str(folder) and f"vpd train {folder}/*.yaml" in called.out
    index = json.loads((folder / "sweep.json").read_bytes())
    assert index["grid"] == {COEFF: [1e-4, 3e-4], "pd.seed": [0, 1]}
    assert {p.name for p in folder.iterdir()} == {"sweep.json", *(point["file"] for point in index["points"])}
    assert [point["run_id"] for point in index["points"]][1] == "tiny_ImportanceMinimalityLoss.coeff=0.0001_seed=1"
    base = read_run_file(write_file(tmp_path)).config
    for point in index["points"]:
        read = read_run_file(folder / point["file"])
        assert read.config.run_id == point["run_id"] and not read.notices
        minimality = next(t for t in read.config.pd.loss_metrics if t.type == "ImportanceMinimalityLoss")
        assert (minimality.coeff, read.config.pd.seed) == tuple(point["values"].values())
        assert read.config.target == base.target and read.config.eval == base.eval


def test_a_point_trains(tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_file(tmp_path, eval=None)
    called = vpd("sweep", file, "--grid", "pd.steps=20")
    assert called.out.splitlines()[-1] == "sweeps/tiny"
    called = vpd("train", *Path("sweeps/tiny").glob("*.yaml"), "--quiet")
    assert (called.code, called.out.splitlines()[-1]) == (0, "runs/tiny_steps=20")


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("pd.sed=1", ("pd.sed", "nearest valid spelling: seed")),
        ("pd.loss_metrics.ImportanceMinimaltyLoss.coeff=1", ("nearest valid spelling: ImportanceMinimalityLoss",)),
        ("pd.steps=20,many", ("pd.steps", "an integer", "many")),
        ("pd.seed=1,2,1", ("seed=1", "repeated")),
        (f"{COEFF}=1e-4,0.0001", ("repeated",)),
        ("pd.decomposition_targets.linear1.C=6,7", ("pd.tied_weights",)),
        ("pd.seed", ("has no values",)),
        ("pd.seed=", ("has no values",)),
        ("=1", ("has no values",)),
        ("pd.seed=[1", ("not valid YAML",)),
        ("run_id=a", ("--name",)),
        ("runtime.mesh.data=1", ("null in this file",)),
        (f"pd.batch_size={','.join(map(str, range(1, 1100)))}", ("more than 1000 points",)),
    ],
)
def test_a_grid_that_cannot_be_used(grid: str, words: tuple[str, ...], tmp_path: Path, vpd: Vpd) -> None:
    file = write_file(tmp_path)
    before = tree(tmp_path)
    called = vpd("sweep", file, "--grid", "pd.batch_size=32,64", "--grid", grid, "-o", tmp_path / "sweep")
    if grid.startswith("pd.batch_size"):
        called = vpd("sweep", file, "--grid", grid, "-o", tmp_path / "sweep")
    assert (called.code, called.out) == (2, "")
    said = one_line(called.err)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == before


@pytest.mark.parametrize("second", ["pd.loss_metrics.1.coeff=1", "pd.loss_metrics.1={}"])
def test_two_grids_of_one_place(second: str, tmp_path: Path, vpd: Vpd) -> None:
    called = vpd("sweep", write_file(tmp_path), "--grid", f"{COEFF}=1e-4", "--grid", second, "-o", tmp_path / "s")
    assert called.code == 2 and "same place" in one_line(called.err)


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path, vpd: Vpd) -> None:
    file, folder = write_file(tmp_path), tmp_path / "sweep"
    assert vpd("sweep", file, "--grid", "pd.seed=0,1", "-o", folder).code == 0
    (folder / "mine.yaml").write_text("mine")
    before = tree(folder)
    called = vpd("sweep", file, "--grid", "pd.seed=1,2", "-o", folder)
    assert called.code == 2 and "--force" in one_line(called.err)
    assert tree(folder) == before
    assert vpd("sweep", file, "--grid", "pd.seed=1,2", "-o", folder, "--force").code == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "mine.yaml",
        "sweep.json",
        "tiny_seed=1.yaml",
        "tiny_seed=2.yaml",
    ]


def test_names_stay_readable(tmp_path: Path, vpd: Vpd) -> None:
    grids = ("pd.tied_weights=null,[]", "pd.ci_config.hidden_dims=[8],[4, 4]", "pd.decomposition_targets.linear*.C=5")
    wild = [{"module_pattern": "linear*", "C": 6}]
    file = write_file(tmp_path, pd__decomposition_targets=wild)
    options = [word for grid in grids for word in ("--grid", grid)]
    called = vpd("sweep", file, *options, "--name", "a b", "-o", tmp_path / "s")
    assert called.code == 0, called.err
    names = {p.stem for p in (tmp_path / "s").glob("*.yaml")}
    assert names == {f"a-b_tied_weights={t}_hidden_dims={h}_C=5" for t in ("null", "none") for h in ("8", "4-4")}
