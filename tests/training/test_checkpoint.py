"""Checkpoints: what is loaded is what was saved, to the bit, and only what was saved whole."""

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.config import read_run_file
from vpd.errors import RunError
from vpd.targets.tms import init_tms
from vpd.training.build import init_state, problem_from, sites_from
from vpd.training.checkpoint import Checkpoints, named_leaves
from vpd.training.manifest import DamagedCheckpointError, checksum
from vpd.training.state import TrainState

FILE = {
    "target": {"n_features": 5, "n_hidden": 2, "pretrain": {"steps": 1, "batch_size": 4, "lr": 1e-3}},
    "data": {"feature_probability": 0.05},
    "cadence": {"train_log_every": 1},
    "pd": {
        "n_mask_samples": 1,
        "decomposition_targets": [{"module_pattern": "linear*", "C": 6}],
        "ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [8]},
        "steps": 5,
        "batch_size": 8,
        "loss_metrics": [
            {"type": "FaithfulnessLoss", "coeff": 1.0},
            {
                "type": "PersistentPGDReconLoss",
                "coeff": 1.0,
                "scope": {"type": "bc"},
                "optimizer": {"type": "adam", "lr_schedule": {"start_val": 0.01}},
            },
        ],
        "components_optimizer": {"lr_schedule": {"start_val": 1e-3}},
        "ci_fn_optimizer": {"lr_schedule": {"start_val": 1e-3}},
    },
}


def state_at(step: int, C: int = 6) -> TrainState:
    """A state with strange values in it, as if after some steps."""
    file = {**FILE, "pd": {**FILE["pd"], "decomposition_targets": [{"module_pattern": "linear*", "C": C}]}}
    config = read_run_file(file).config
    problem = problem_from(config.pd, sites_from(config.pd, init_tms(5, 2, 0, 0)), False)
    state = init_state(problem, config.pd, config.tied_pairs, (8,))
    numbers = iter(range(1, 1000))
    state = jax.tree.map(lambda x: x + jnp.asarray(next(numbers) / 7).astype(x.dtype), state)
    return eqx.tree_at(lambda s: s.training.step, state, jnp.asarray(step, jnp.int32))


def template(C: int = 6) -> TrainState:
    return jax.eval_shape(lambda: state_at(0, C))


def assert_equal(a: object, b: object) -> None:
    left, right = named_leaves(a), named_leaves(b)
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert np.asarray(left[name]).tobytes() == np.asarray(right[name]).tobytes(), name


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path / "checkpoints")
    for step in (3, 12):
        writer.save(state_at(step))
        writer.wait()
    assert writer.steps() == [3, 12]
    writer.close()
    reader = Checkpoints(tmp_path / "checkpoints", writable=False)
    assert reader.steps() == [3, 12]
    assert_equal(reader.load_state(3, template()), state_at(3))
    assert_equal(reader.load_decomposition(12, template().decomposition), state_at(12).decomposition)
    reader.close()


def test_names_of_leaves_are_distinct_and_plain() -> None:
    names = list(named_leaves(state_at(0)))
    assert len(set(names)) == len(jax.tree.leaves(state_at(0)))
    assert "decomposition.components.owned.linear1.V" in names


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path / "checkpoints")
    writer.save(state_at(3))
    writer.wait()
    writer.save(jax.tree.map(lambda x: x if x.ndim == 0 else -x, state_at(3)))
    writer.wait()
    assert_equal(writer.load_state(3, template()), state_at(3))
    writer.close()


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    for step in range(1, 5):
        writer.save(state_at(step))
        writer.wait()
    assert writer.steps() == [3, 4]
    writer.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_reader_sees_neither_unfinished_nor_foreign_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    writer = Checkpoints(folder)
    writer.save(state_at(3))
    writer.wait()
    writer.close()
    (folder / "4.orbax-checkpoint-tmp").mkdir()
    (folder / "notes").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    reader = Checkpoints(folder, writable=False)
    assert reader.steps() == [3]
    reader.close()
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    writer = Checkpoints(folder)
    assert writer.steps() == [3]
    writer.save(state_at(5))
    writer.close()
    assert writer.steps() == [3, 5]
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


@pytest.fixture
def threads_may_complain() -> Iterator[None]:
    """Reads that Orbax has under way when one of them fails end in threads, after the error was reported."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    yield
    time.sleep(0.2)
    gc.collect()
    sys.unraisablehook = before


@pytest.mark.usefixtures("threads_may_complain")
@pytest.mark.parametrize("C", [5, 7])
def test_another_number_of_subcomponents(C: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = Checkpoints(tmp_path / "checkpoints")
    writer.save(state_at(3))
    writer.wait()
    with pytest.raises(RunError, match=r"config\.yaml") as caught:
        writer.load_state(3, template(C))
    writer.close()
    assert "\n" not in str(caught.value) and "strict=False" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints 3 and 5."""
    folder = tmp_path_factory.mktemp("saved") / "run" / "checkpoints"
    with Checkpoints(folder) as writer:
        for step in (3, 5):
            writer.save(state_at(step))
            writer.wait()
    return folder


@pytest.mark.usefixtures("threads_may_complain")
@pytest.mark.slow
@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flip", "delete"])
def test_every_file_damaged(damage: Callable[[Path], object], two_saved: Path, tmp_path: Path) -> None:
    """Whatever happens to any one file, what is found is to the bit what was saved at the step it is found at."""
    found: dict[str, int] = {}
    for file in [p.relative_to(two_saved) for p in sorted((two_saved / "5").rglob("*")) if p.is_file()]:
        folder = tmp_path / "run" / "checkpoints"
        shutil.copytree(two_saved, folder)
        damage(folder / file)
        reader = Checkpoints(folder, writable=False)
        newest = reader.newest(lambda step, reader=reader: reader.load_state(step, template()))
        assert newest is not None
        assert_equal(newest.value, state_at(newest.step))
        assert list(newest.skipped) == ([] if newest.step == 5 else [5])
        verified = reader.newest(lambda step, reader=reader: reader.load_verified(step, template().decomposition))
        assert verified is not None and verified.step == newest.step
        found[str(file)] = newest.step
        shutil.rmtree(folder)
    assert found["5/_CHECKPOINT_METADATA"] == 3
    for item in ("decomposition", "training"):
        assert found[f"5/{item}/manifest.ocdbt"] == 3
        assert [step for file, step in found.items() if file.startswith(f"5/{item}/d/")] == [3]


@pytest.mark.usefixtures("threads_may_complain")
@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flip", "delete"])
@pytest.mark.parametrize("where", ["_CHECKPOINT_METADATA", "decomposition/d/*", "training/manifest.ocdbt"])
def test_one_file_damaged(where: str, damage: Callable[[Path], object], two_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    (file,) = (folder / "5").glob(where)
    damage(file)
    reader = Checkpoints(folder, writable=False)
    newest = reader.newest(lambda step: reader.load_state(step, template()))
    assert newest is not None and (newest.step, list(newest.skipped)) == (3, [5])
    assert_equal(newest.value, state_at(3))


def _with_manifest(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "_CHECKPOINT_METADATA"
    document = json.loads(path.read_bytes())
    edit(document["custom_metadata"])
    path.write_text(json.dumps(document))


def test_bytes_are_compared(two_saved: Path, tmp_path: Path) -> None:
    """Values that can be read and are not those that were saved."""
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    shutil.rmtree(folder / "5" / "training")
    shutil.copytree(folder / "3" / "training", folder / "5" / "training")
    reader = Checkpoints(folder, writable=False)
    newest = reader.newest(lambda step: reader.load_verified(step, template().decomposition))
    assert newest is not None and newest.step == 3
    assert "training.step has other bytes" in newest.skipped[5]
    assert_equal(reader.load_decomposition(5, template().decomposition), state_at(5).decomposition)


def test_a_checkpoint_under_another_number(two_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    (folder / "5").rename(folder / "7")
    reader = Checkpoints(folder, writable=False)
    with pytest.raises(DamagedCheckpointError, match="of step 5"):
        reader.load_state(7, template())


def test_before_there_were_manifests(two_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    for step in ("3", "5"):
        _with_manifest(folder / step, lambda metadata: metadata.clear())
    reader = Checkpoints(folder, writable=False)
    newest = reader.newest(lambda step: reader.load_state(step, template()))
    assert newest is not None and newest.step == 5
    assert_equal(newest.value, state_at(5))
    shutil.rmtree(folder / "5" / "training")
    newest = reader.newest(lambda step: reader.load_verified(step, template().decomposition))
    assert newest is not None and (newest.step, list(newest.skipped)) == (3, [5])
    assert_equal(newest.value, state_at(3).decomposition)


def test_what_is_set_aside_is_neither_counted_nor_lost(two_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    with Checkpoints(folder, keep_last=2) as writer:
        assert writer.set_aside(5).name == "5.damaged"
        writer.save(state_at(5))
        writer.wait()
        assert writer.steps() == [3, 5]
        assert writer.set_aside(5).name == "5.damaged-2"
        for step in (5, 8, 9):
            writer.save(state_at(step))
            writer.wait()
    assert sorted(p.name for p in folder.iterdir()) == ["5.damaged", "5.damaged-2", "8", "9"]
    reader = Checkpoints(folder, writable=False)
    for step in (8, 9):
        shutil.rmtree(folder / str(step))
    with pytest.raises(RunError, match=r"no checkpoint of .* is good \(5.damaged was left aside"):
        reader.newest(lambda step: reader.load_state(step, template()))


def test_a_manifest_of_a_later_version(two_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_saved, tmp_path / "run" / "checkpoints"))
    _with_manifest(folder / "5", lambda metadata: metadata["manifest"].update(schema_version=2))
    reader = Checkpoints(folder, writable=False)
    with pytest.raises(RunError, match="version 2"):
        reader.newest(lambda step: reader.load_state(step, template()))


def test_checksums_see_every_bit() -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    other = numbers.copy()
    other.view(np.uint32)[1, 2] ^= 1
    assert checksum(numbers) == checksum(jnp.asarray(numbers)) == checksum(np.asfortranarray(numbers))
    assert checksum(other) != checksum(numbers)
    assert checksum(jnp.asarray(3, jnp.int32)) != checksum(jnp.asarray(4, jnp.int32))
    assert checksum(jnp.asarray([1.0], jnp.bfloat16)) == checksum(np.asarray([1], np.float32).view(np.uint16)[1:])
