"""What a run file may ask for beside the published runs: trained, interrupted, and gone on with to the same bits."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import TINY, assert_same_run, records, tiny, write_file

from vpd import open_run, read_run_file
from vpd.experiment import build, first_state, state_template
from vpd.face import decompose
from vpd.objective import faithfulness_loss
from vpd.run_directory import RunDirectory

MUON = {"lr_schedule": {"start_val": 1e-2, "fn_type": "cosine", "final_val_frac": 0.0}, "type": "muon", "ns_steps": 3}
SHARED = {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": [8]}
SIZE = {"d_model": 8, "n_blocks": 2, "mlp_hidden_dim": [12], "attn_config": {"n_heads": 2}}
CHUNKWISE = {
    "mode": "chunkwise",
    "fn_type": "chunkwise_transformer",
    "sites_per_chunk": 1,
    "simple_transformer_ci_cfg": SIZE,
}
GLOBAL = {"mode": "global", "fn_type": "global_shared_transformer", "simple_transformer_ci_cfg": SIZE}

FAITHFULNESS, MINIMALITY, STOCHASTIC, PERSISTENT = TINY["pd"]["loss_metrics"]
RIDER = {"hidden_acts_reconstruction": {"coeff": 0.5, "sites": ["linear1"]}}
MERGED = PERSISTENT | {"type": "MergedStochasticPersistentReconLoss", "adv_fraction": 0.5, "n_samples": 2}

EXTENSIONS: dict[str, dict[str, object]] = {
    "muon": {"eval": None, "pd__components_optimizer": MUON, "pd__ci_fn_optimizer": MUON, "pd__ci_config": SHARED},
    "transformer": {"eval": None, "pd__ci_config": GLOBAL},
    "chunkwise": {"eval": None, "pd__ci_config": CHUNKWISE},
    "riders": {"eval": None, "pd__loss_metrics": [FAITHFULNESS, MINIMALITY, STOCHASTIC | RIDER, PERSISTENT | RIDER]},
    "merged": {"eval": None, "pd__loss_metrics": [FAITHFULNESS, MINIMALITY, MERGED]},
    "svd": {"eval": None, "pd__initialization": "svd", "pd__faithfulness_warmup_steps": 0},
}


# One in the fast suite, the one whose steps differ most from the published runs'.
CHEAP = ("muon",)


@pytest.mark.parametrize(
    "name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in EXTENSIONS if name not in CHEAP)]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    file = write_file(tmp_path, **EXTENSIONS[name], pd__steps=30)
    whole = decompose(file, out_dir=tmp_path, run_id="whole", quiet=True)
    cut = Path(shutil.copytree(whole.path, tmp_path / "cut"))
    for step in (20, 30):
        shutil.rmtree(cut / "checkpoints" / str(step))
    RunDirectory(cut).update_facts(status="stopped")
    decompose(file, out_dir=tmp_path, run_id="cut", quiet=True)
    assert_same_run(whole.path, cut)
    losses = [r["loss/total"] for r in records(cut) if r["kind"] == "train"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert open_run(cut).step == 30


@pytest.mark.slow
def test_riders_are_recorded_in_training_and_evaluation(tmp_path: Path) -> None:
    changes = EXTENSIONS["riders"] | {"eval": TINY["eval"]}
    decompose(write_file(tmp_path, **changes, pd__steps=20), out_dir=tmp_path, run_id="ridden", quiet=True)
    for record in records(tmp_path / "ridden"):
        values = record.get("metrics", record)
        assert values["loss/StochasticReconLoss/hidden_acts"] > 0
        active = record["step"] >= 6
        assert ("loss/PersistentPGDReconLoss/hidden_acts" in values) == active


def test_svd_starts_faithful(tmp_path: Path) -> None:
    config = read_run_file(tiny(**EXTENSIONS["svd"])).config
    experiment = build(config)
    state, template = first_state(experiment), state_template(experiment)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), template)
    weights = {"linear1": experiment.target.linear1, "linear2": experiment.target.linear1.T}
    loss = faithfulness_loss(experiment.problem.sites, weights, state.decomposition.components)
    assert float(loss) < 1e-10
