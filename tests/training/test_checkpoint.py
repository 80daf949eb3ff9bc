"""Checkpoints: what is loaded is what was saved, to the bit, and only what was saved whole."""

import gc
import sys
import time
from collections.abc import Iterator
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
    writer.save(jax.tree.map(lambda x: x if x.ndim == 0 else -x, state_at(3)))
    assert_equal(writer.load_state(3, template()), state_at(3))
    writer.close()


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    for step in range(1, 5):
        writer.save(state_at(step))
    assert writer.steps() == [3, 4]
    writer.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_reader_sees_neither_unfinished_nor_foreign_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    writer = Checkpoints(folder)
    writer.save(state_at(3))
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
    for _ in range(100):  # Orbax clears in a thread
        if not (folder / "4.orbax-checkpoint-tmp").exists():
            break
        time.sleep(0.05)
    writer.close()
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
    with pytest.raises(RunError, match=r"config\.yaml") as caught:
        writer.load_state(3, template(C))
    writer.close()
    assert "\n" not in str(caught.value) and "strict=False" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
