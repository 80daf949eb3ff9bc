"""A run that meets values which are not finite: it stops, names step, term and site, and says in a file what it met."""

import json
import shutil
from pathlib import Path
from typing import Any  # JSON

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_traced_run import CONTENT
from tiny_language_model import written
from tiny_run import Vpd, final_bytes, saved_steps, tree, write_file

from vpd import NonFiniteError, decompose, open_run, read_run_file, trace
from vpd.experiment import build, reopened_target
from vpd.run_directory import RunDirectory

HOT = {"lr_schedule": {"start_val": 1e18}}


def dump_of(run: Path) -> dict[str, Any]:
    """The only dump of a run."""
    (path,) = (run / "nonfinite").iterdir()
    found = json.loads(path.read_bytes())
    assert path.name == f"{found['step']}.json"
    return found


def last_line(err: str) -> str:
    assert "Traceback" not in err, err
    return err.splitlines()[-1]


def test_a_loss_at_a_late_step(tmp_path: Path, vpd: Vpd) -> None:
    """The learning rate is far too large from step 30 on: the dump is of the state that step began with."""
    whole = vpd("train", write_file(tmp_path), "--out-dir", tmp_path / "whole", "--steps", 30, "--quiet")
    assert whole.code == 0, whole.err
    shutil.copytree(tmp_path / "whole", tmp_path / "runs")
    run, changed = tmp_path / "runs" / "tiny", {"pd__components_optimizer": HOT, "pd__steps": 60}
    cadence = {"train_log_every": 5, "save_every": 50}
    file = write_file(tmp_path, cadence=cadence, **changed)
    stopped = vpd("train", file, "--out-dir", tmp_path / "runs", "--override-config", "--quiet")
    assert stopped.code == 1
    said = last_line(stopped.err)
    assert "the loss is not finite at step 31 (" in said and f"{run}/nonfinite/31.json says more" in said
    assert "the first that is not finite is the gradient of V of linear1" in said
    dump = dump_of(run)
    assert dump["made_again_from"] == 30 and dump["first"] == {"what": "gradient of V", "site": "linear1"}
    assert dump["batch"] == {"seed": 0, "step": 31, "stream": "data/train"}
    assert dump["logs"]["loss/total"] in ("nan", "inf") and "loss/FaithfulnessLoss" in dump["logs"]
    site = dump["sites"]["linear1"]  # which owns what linear2 sees transposed
    assert site["V"]["not_finite"] == 0 and site["V"]["largest"] > 1e15 < site["V"]["norm"]
    assert site["gradient of V"]["not_finite"] == site["V after"]["not_finite"] == 5 * 6
    assert dump["norms"]["V"] >= site["V"]["norm"]
    parts = [f"sites.linear{i}.{layer}.{part}" for i in (1, 2) for layer in ("hidden.0", "out") for part in "Wb"]
    assert sorted(dump["ci_fn"]) == sorted(parts)
    # What was good stays good, and the same command meets the same end.
    assert saved_steps(run) == [10, 20, 30] and open_run(run).step == 30
    assert RunDirectory(run).read_facts()["status"] == "failed"
    assert final_bytes(run) == final_bytes(tmp_path / "whole" / "tiny")
    again = vpd("train", run, "--quiet")
    assert (again.code, last_line(again.err)) == (1, said) and dump_of(run) == dump


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 3])
def test_a_weight_of_the_target(warmup: int, place: Path, tmp_path: Path, vpd: Vpd) -> None:
    """A weight that is finite, and whose square is not: one that isn't is refused when the file is read."""
    folder = Path(shutil.copytree(place / "model", tmp_path / "model"))
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    name = next(n for n in sorted(weights) if "h.1.mlp.c_fc" in n)
    weights[name] = weights[name].copy()
    weights[name][0, 0] = 3e38
    save_file(weights, path)
    target = {"spec": {"kind": "file", "path": str(folder), "model_class": "LlamaSimpleMLP"}}
    file = written(place, tmp_path, target=target, pd__faithfulness_warmup_steps=warmup, eval=None)
    stopped = vpd("train", file, "--out-dir", tmp_path, "--run-id", "lm", "--quiet")
    assert stopped.code == 1
    said = last_line(stopped.err)
    assert "the loss is not finite at step 0 (" in said and "the input of h.1.mlp.down_proj" in said, said
    dump = dump_of(tmp_path / "lm")
    assert dump["sites"]["h.1.mlp.c_fc"]["frozen weight"]["largest"] > 2e38
    rows = build(read_run_file(file).config).train_batch.rows
    assert dump["batch"]["rows"] == rows.places(0).tolist() and len(dump["batch"]["rows"]) == 4
    assert not saved_steps(tmp_path / "lm")


def _sometimes_nothing(key: jax.Array, n: int) -> jax.Array:
    """Now and then a row of zeros, where the root of a squared distance has no gradient."""
    x = jax.random.normal(key, (n, 4))
    return x.at[0].mul(jnp.where(jax.random.uniform(jax.random.fold_in(key, 1)) > 0.92, 0.0, 1.0))


def test_a_gradient_where_every_loss_is_finite(tmp_path: Path) -> None:
    """The run stops at that step, not at the next one, whose loss would not be finite."""
    target = trace(
        lambda params, x: x @ params["W"],
        {"W": jax.random.normal(jax.random.key(0), (4, 3))},
        jnp.zeros((8, 4)),
        sites={"W": 5},
        divergence=lambda clean, masked: jnp.sqrt(jnp.sum((clean - masked) ** 2, axis=-1)),
    )
    faithfulness, minimality, *_ = CONTENT["pd"]["loss_metrics"]
    terms = [faithfulness, minimality, {"type": "StochasticReconLoss", "coeff": 1.0}]
    pd = {**CONTENT["pd"], "loss_metrics": terms, "steps": 60, "faithfulness_warmup_steps": 0}
    pd["ci_config"] = {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [4]}
    content = {**CONTENT, "pd": pd, "eval": None, "cadence": {"train_log_every": 1, "save_every": 2}}
    with pytest.raises(NonFiniteError, match="the gradient is not finite at step") as caught:
        decompose(content, target=target, data=_sometimes_nothing, out_dir=tmp_path, run_id="roots", quiet=True)
    dump = dump_of(tmp_path / "roots")
    step = dump["step"]
    assert step > 1 and caught.value.step == step and "gradient of V of W" in str(caught.value)
    assert dump["made_again_from"] == saved_steps(tmp_path / "roots")[-1] == step // 2 * 2
    assert np.isfinite(dump["logs"]["loss/total"]) and dump["logs"]["grad_norm/components"] == "nan"
    assert next(name for name, found in dump["sites"]["W"].items() if found["not_finite"]) == "gradient of V"
    config = open_run(tmp_path / "roots", target=target).config
    experiment = build(
        config, reopened_target(RunDirectory(tmp_path / "roots"), config, target), data=_sometimes_nothing
    )
    batch = dump["batch"]
    made = experiment.train_batch(jnp.asarray(batch["seed"], jnp.uint32), jnp.asarray(batch["step"], jnp.int32))
    assert not np.asarray(made)[0].any() and np.asarray(made)[1:].any()


def test_parameters_that_the_last_update_spoilt(tmp_path: Path, vpd: Vpd) -> None:
    rate = {"lr_schedule": {"start_val": 3e38}, "weight_decay": 1.0}
    file = write_file(
        tmp_path, pd__components_optimizer=rate, eval=None, cadence={"train_log_every": 1, "save_every": 1}
    )
    stopped = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert stopped.code == 1 and "V and U are not finite after 1 updates" in last_line(stopped.err), stopped.err
    assert "the U after of" not in stopped.err and "step 0 left V of linear1" in last_line(stopped.err)
    site = dump_of(tmp_path / "runs" / "tiny")["sites"]["linear1"]
    assert site["V"]["not_finite"] == site["gradient of V"]["not_finite"] == 0 < site["V after"]["not_finite"]
    assert "checkpoints/1" not in tree(tmp_path / "runs" / "tiny")
