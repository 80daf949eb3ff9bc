"""A run's records in TensorBoard and W&B, by packages that stand in for theirs: names, failures, resuming, secrets."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from tiny_run import Document, Vpd, one_line, records, tree, write_file

from vpd import ConfigError, decompose, open_run
from vpd.run_directory import RunDirectory

sys.path.append(str(Path(__file__).parents[1] / "records"))

from fake_services import Fakes, put_fakes, take_away

SECRET = "0123456789abcdef0123456789abcdef01234567"
WANDB = {"project": "toys", "group": "g", "tags": ["tiny"]}
BOTH: Document = {"wandb": WANDB, "logging": {"tensorboard": True}}
SHORT: Document = {"eval": None, "pd__steps": 20}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Both packages, which remember and do as they are told."""
    return put_fakes(monkeypatch)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Fakes]]:
    """The tiny file trained with both sinks and a key in the environment."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        fakes = put_fakes(patch)
        patch.setenv("WANDB_API_KEY", SECRET)
        yield decompose(write_file(folder, **BOTH), out_dir=folder / "runs", quiet=True).path, fakes


def test_every_record_is_everywhere_under_one_name(recorded: tuple[Path, Fakes]) -> None:
    run_dir, fakes = recorded
    (run,), (writer,) = fakes.wandb.RUNS, fakes.tensorboardX.WRITERS
    expected: dict[tuple[str, int], float] = {}
    for record in records(run_dir):
        kind, step, metrics = record.pop("kind"), record.pop("step"), record.pop("metrics", None)
        for key, value in (record if metrics is None else metrics).items():
            expected[f"{kind}/{key.replace('@', '_')}", step] = value
    assert {(name, step): value for name, value, step in writer.scalars} == expected
    rows = [dict(row) for row in run.rows]
    sent = {(n, row["step"]): x for row in rows for n, x in row.items() if n != "step" and not n.startswith("figures/")}
    assert sent == expected
    assert len(expected) > 100 and ("train/loss/total", 59) in expected and ("eval/CI_L0/linear1", 60) in expected


def test_drawings_are_there_where_they_were_drawn(recorded: tuple[Path, Fakes]) -> None:
    run_dir, fakes = recorded
    (run,), (writer,) = fakes.wandb.RUNS, fakes.tensorboardX.WRITERS
    drawn = {(f"figures/{p.stem}", int(p.parent.name)) for p in run_dir.glob("figures/*/*.png")}
    assert len(drawn) == 4
    assert {(name, step) for name, _, step in writer.images} == drawn
    assert all(shape[2] == 3 and min(shape[:2]) > 50 for _, shape, _ in writer.images)
    images = {(n, row["step"]): x for row in run.rows for n, x in row.items() if n.startswith("figures/")}
    assert set(images) == drawn
    assert all(image.size > 1000 and image.caption for image in images.values())


def test_what_wandb_is_told_of_the_run(recorded: tuple[Path, Fakes]) -> None:
    run_dir, fakes = recorded
    (run,) = fakes.wandb.RUNS
    given = run.given
    assert {key: given[key] for key in ("project", "group", "tags", "entity", "name")} == {
        **WANDB,
        "entity": None,
        "name": "tiny",
    }
    assert given["id"] == RunDirectory(run_dir).read_facts()["wandb_id"]
    assert (given["resume"], given["reinit"], given["settings"].console) == ("allow", "create_new", "off")
    assert "mode" not in given, "the user's WANDB_MODE decides"
    assert given["config"]["pd"]["steps"] == 60
    assert ("*", "step") in run.axes
    assert run.exit_code == 0 and fakes.tensorboardX.WRITERS[0].is_closed


def test_no_secret_in_the_run_directory(recorded: tuple[Path, Fakes]) -> None:
    run_dir, fakes = recorded
    assert all(SECRET.encode() not in (content or b"") for content in tree(run_dir).values())
    assert SECRET not in json.dumps(fakes.wandb.RUNS[0].given, default=str)
    assert not (run_dir / "wandb").exists()


def test_a_run_that_is_gone_on_with(recorded: tuple[Path, Fakes], tmp_path: Path, vpd: Vpd, fakes: Fakes) -> None:
    run_dir = Path(shutil.copytree(recorded[0], tmp_path / "runs" / "tiny"))
    for step in (30, 40, 50, 60):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    RunDirectory(run_dir).update_facts(status="stopped")
    called = vpd("train", run_dir, "--quiet")
    assert called.code == 0, called.err
    (run,), (writer,) = fakes.wandb.RUNS, fakes.tensorboardX.WRITERS
    assert run.given["id"] == recorded[1].wandb.RUNS[0].given["id"]
    assert (writer.folder, writer.purge_step) == (run_dir / "tensorboard", 20)
    assert recorded[1].tensorboardX.WRITERS[0].purge_step is None
    assert {row["step"] for row in run.rows} == {20, 25, 30, 35, 40, 45, 50, 55, 59, 60}
    assert {step for _, _, step in writer.scalars} == {row["step"] for row in run.rows}
    assert records(run_dir) == records(recorded[0])


@pytest.mark.parametrize("where", ["init", "log", "close"])
def test_a_failure_is_said_and_the_run_finishes(
    where: str, tmp_path: Path, vpd: Vpd, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    fakes.wandb.FAILS_AT = where
    called = vpd("train", write_file(tmp_path, **SHORT, **BOTH), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0, called.err
    sentences = [line for line in called.err.splitlines() if "shows this run at" not in line]
    assert sentences == [
        f"vpd: W&B gets no more records (RuntimeError: {where}: 401 for key *** at https://***@host/x); "
        "the run goes on, and metrics.jsonl has them all"
    ]
    run_dir = tmp_path / "runs" / "tiny"
    assert [r["step"] for r in records(run_dir)] == [0, 5, 10, 15, 19]
    assert {step for _, _, step in fakes.tensorboardX.WRITERS[0].scalars} == {0, 5, 10, 15, 19}
    assert all(SECRET.encode() not in (content or b"") for content in tree(run_dir).values())


def test_a_slow_sink_gets_everything_at_the_end(tmp_path: Path, vpd: Vpd, fakes: Fakes) -> None:
    fakes.wandb.SECONDS = 0.3
    called = vpd("train", write_file(tmp_path, **SHORT, **BOTH), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0, called.err
    assert "W&B shows this run at https://wandb.example/toys/" in one_line(called.err)
    assert [row["step"] for row in fakes.wandb.RUNS[0].rows] == [0, 5, 10, 15, 19]
    times = [json.loads(line)["time"] for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert times[-1] - times[1] < 0.9, "training waited"


def test_nobody_is_logged_in(tmp_path: Path, vpd: Vpd, fakes: Fakes) -> None:
    fakes.wandb.LOGGED_IN = False
    called = vpd("train", write_file(tmp_path, **SHORT, wandb=WANDB), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0
    assert "wandb login" in one_line(called.err) and fakes.wandb.RUNS == []
    assert not (tmp_path / "runs" / "tiny" / "tensorboard").exists()


def test_offline(tmp_path: Path, vpd: Vpd, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.wandb.LOGGED_IN = False
    monkeypatch.setenv("WANDB_MODE", "offline")
    called = vpd("train", write_file(tmp_path, **SHORT, wandb=WANDB), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0
    assert "`wandb sync wandb/offline-run-" in one_line(called.err)
    assert len(fakes.wandb.RUNS[0].rows) == 5


@pytest.mark.parametrize("command", ["train", "config check"])
@pytest.mark.parametrize(
    ("changes", "key", "extra"),
    [
        ({"wandb": WANDB}, "wandb: ", "vpd-jax[wandb]"),
        ({"logging": {"tensorboard": True}}, "logging.tensorboard: ", "vpd-jax[tensorboard]"),
    ],
)
def test_a_missing_package_is_refused_before_any_work(
    command: str,
    changes: Document,
    key: str,
    extra: str,
    tmp_path: Path,
    vpd: Vpd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    take_away(monkeypatch, place)
    monkeypatch.chdir(place)
    before = tree(place)
    called = vpd(*command.split(), write_file(tmp_path, **changes))
    assert (called.code, called.out) == (2, "")
    assert key in one_line(called.err) and f"pip install '{extra}'" in called.err
    assert tree(place) == before


def test_a_run_is_read_without_the_packages(
    recorded: tuple[Path, Fakes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="not installed"):
        decompose(recorded[0] / "config.yaml")
    assert open_run(recorded[0]).step == 60
