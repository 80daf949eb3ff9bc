"""A small language model from its file through training, killing, reading, evaluating and comparing."""

import json
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language_model import LAYERS, LENGTH, SITES, TERMS, VOCAB, written
from tiny_run import Vpd, final_bytes, finish, one_line, records, saved_steps, start, tree

from vpd import RunError, SiteMask, open_run
from vpd.face import decompose
from vpd.targets import init_simple_mlp_lm
from vpd.targets.checkpoint import save_language_model


@pytest.fixture(scope="session")
def trained(place: Path, own_cache: Path) -> Path:
    """The run directory, trained without interruption."""
    with jax.numpy_dtype_promotion("standard"):
        return decompose(written(place, place), out_dir=place / "runs", run_id="whole", quiet=True).path


@pytest.fixture
def batch() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32))


def test_a_killed_run_goes_on_to_the_same_end(place: Path, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    arguments = ("train", written(place, tmp_path), "--out-dir", tmp_path, "--run-id", "killed", "--quiet")
    process, run = start(*arguments), tmp_path / "killed"
    while process.poll() is None and not (run / "checkpoints" / "6").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code in (-signal.SIGKILL, 0), err
    assert 6 in saved_steps(run)
    shutil.rmtree(run / "checkpoints" / "12", ignore_errors=True)  # where it was too fast to be killed
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"status": "stopped"}))
    called = vpd(*arguments)
    assert called.code == 0, called.err
    assert final_bytes(trained) == final_bytes(run)
    assert records(trained) == records(run)


def test_records_name_single_matrices(trained: Path) -> None:
    last = records(trained)[-1]
    assert (last["kind"], last["step"]) == ("eval", 12)
    assert {f"CI_L0/{site}" for site in SITES} | {"CI_L0/layer_1"} <= last["metrics"].keys()
    layer = sum(last["metrics"][f"CI_L0/{site}"] for site in SITES if site.startswith("h.1."))
    assert last["metrics"]["CI_L0/layer_1"] == pytest.approx(layer)
    assert {f"CIHiddenActsReconLoss/{site}" for site in SITES} <= last["metrics"].keys()
    assert not [name for name in last["metrics"] if "0-1" in name or "0-2" in name]
    assert any(r["kind"] == "train" and "loss/StochasticReconSubsetLoss/hidden_acts" in r for r in records(trained))


def test_an_opened_run_speaks_of_single_matrices(trained: Path, batch: jax.Array) -> None:
    before = tree(trained)
    run = open_run(trained)
    assert (run.step, run.status, run.sites) == (12, "finished", SITES)
    importances = run.causal_importances(batch)
    assert tuple(importances) == SITES
    assert importances["h.1.mlp.c_fc"].shape == (2, LENGTH, 4) and importances["h.2.attn.q_proj"].shape == (
        2,
        LENGTH,
        3,
    )
    pieces = run.components("h.1.mlp.c_fc")
    assert pieces.V.shape == (8, 4) and pieces.U.shape == (4, 12)
    assert not np.array_equal(pieces.V, run.components("h.0.mlp.c_fc").V)
    with pytest.raises(RunError, match=r"'h.2.mlp.down_proj' is not a decomposed site"):
        run.components("h.2.mlp.down_proj")
    with pytest.raises(RunError, match=r"not a decomposed site"):
        run.components("h.0-1.mlp.c_fc")
    assert tree(trained) == before


def test_masks_of_some_matrices(trained: Path, batch: jax.Array) -> None:
    run = open_run(trained)
    clean = run.output(batch)
    ones = {"h.1.mlp.c_fc": SiteMask(jnp.ones((2, LENGTH, 4)), jnp.ones((2, LENGTH)))}
    np.testing.assert_allclose(run.masked_output(batch, ones), clean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run.masked_output(batch, {}), clean, rtol=1e-5, atol=1e-5)
    gone = {name: jnp.zeros((1, 1, 4)) for name in ("h.0.mlp.c_fc", "h.1.mlp.c_fc")}
    first, both = (run.masked_output(batch, {name: gone[name] for name in list(gone)[:n]}) for n in (1, 2))
    assert np.abs(np.asarray(first - clean)).max() > 1e-3 and np.abs(np.asarray(both - first)).max() > 1e-3
    with pytest.raises(RunError, match="C = 4"):
        run.masked_output(batch, {"h.1.mlp.c_fc": jnp.ones((2, LENGTH, 3))})
    with pytest.raises(RunError, match=r"the batch has \(2, 8\)"):
        run.masked_output(batch, {"h.1.mlp.c_fc": jnp.ones((3, LENGTH, 4))})


def test_evaluate_is_the_last_evaluation_of_training(trained: Path, vpd: Vpd) -> None:
    called = vpd("evaluate", trained, "--json")
    assert called.code == 0, called.err
    found, recorded = json.loads(called.out)["metrics"], records(trained)[-1]["metrics"]
    assert len(found) > 30
    assert set(recorded) - set(found) == {"loss/PersistentPGDReconLoss"}  # its sources are not loaded
    for name, value in found.items():
        assert value == pytest.approx(recorded[name], rel=1e-5, abs=1e-7), name


def test_other_weights_are_refused(place: Path, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    before = tree(trained)
    model = place / "model"
    kept = shutil.copytree(model, tmp_path / "kept")
    make = jax.jit(lambda: init_simple_mlp_lm(VOCAB, 8, LAYERS, 2, 1, 12, seed=4, max_len=16))
    try:
        save_language_model(make(), model)
        for command in (("evaluate", trained), ("train", trained, "--quiet")):
            called = vpd(*command)
            assert called.code == 2 and called.out == ""
            assert "are not those the run was made with" in one_line(called.err)
        with pytest.raises(RunError, match=r"target\.spec"):
            open_run(trained)
    finally:
        shutil.rmtree(model)
        shutil.copytree(kept, model)
    assert tree(trained) == before and open_run(trained).step == 12


def test_runs_are_compared_by_single_matrices(place: Path, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    """The other run decomposes other layers, so that its network is cut elsewhere."""
    targets = [{"module_pattern": "h.[12].mlp.c_fc", "C": 4}]
    terms = [TERMS[0], TERMS[3] | {"hidden_acts_reconstruction": None}]
    file = written(place, tmp_path, pd__decomposition_targets=targets, pd__loss_metrics=terms, pd__steps=2, eval=None)
    other = decompose(file, out_dir=tmp_path, run_id="other", quiet=True).path
    called = vpd("compare", trained, other, "--json", "-o", tmp_path / "compared")
    assert called.code == 0, called.err
    found = json.loads(called.out)
    assert set(found["sites"]) == {"h.1.mlp.c_fc", "h.2.mlp.c_fc"}
    assert set(found["sites_of_one_run"]) == set(SITES) - set(found["sites"])
    assert (tmp_path / "compared" / "compare.html").exists()
