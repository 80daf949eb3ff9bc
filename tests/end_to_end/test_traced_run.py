"""A traced network through the whole house: trained, gone on with, opened, evaluated, and taken for another one."""

import json
import shutil
from pathlib import Path
from typing import Any  # a run file is nested blocks of anything

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TINY, Vpd, one_line

from vpd import Run, RunError, TracedTarget, VpdError, decompose, open_run, trace
from vpd.commands.evaluate import evaluate_run

WIDTH = 6


class Stacked(eqx.Module):
    """An MLP with residual layers that are scanned over, on a sequence."""

    embed: jax.Array
    layers: dict[str, jax.Array]
    head: eqx.nn.Linear


def forward(model: Stacked, tokens):
    """``[B, T]`` tokens to ``[B, T, vocab]``."""
    h = model.embed[tokens]

    @jax.checkpoint
    def layer(h, layer):
        mixed = jnp.cumsum(h, axis=1) / 8
        return h + jax.nn.gelu(mixed @ layer["up"]) @ layer["down"], None

    h, _ = jax.lax.scan(layer, h, model.layers)
    return jax.vmap(jax.vmap(model.head))(h)


def stacked(seed: int = 0) -> Stacked:
    keys = jax.random.split(jax.random.key(seed), 4)
    return Stacked(
        embed=jax.random.normal(keys[0], (7, WIDTH)),
        layers={
            "up": jax.random.normal(keys[1], (3, WIDTH, 8)) * 0.3,
            "down": jax.random.normal(keys[2], (3, 8, WIDTH)) * 0.3,
        },
        head=eqx.nn.Linear(WIDTH, 7, key=keys[3]),
    )


def tokens(key, n):
    return jax.random.randint(key, (n, 5), 0, 7)


def network(seed: int = 0, function=forward, C: int = 4) -> TracedTarget:
    return trace(function, stacked(seed), jnp.zeros((8, 5), jnp.int32), sites={"embed": 3, "layers/*": C, "head/*": 3})


FAITHFULNESS, MINIMALITY, _, PERSISTENT = TINY["pd"]["loss_metrics"]
CONTENT: dict[str, Any] = {
    "pd": {key: value for key, value in TINY["pd"].items() if key != "decomposition_targets"}
    | {
        "ci_config": {"mode": "layerwise", "fn_type": "vector_mlp", "hidden_dims": [4]},
        "steps": 6,
        "batch_size": 8,
        "faithfulness_warmup_steps": 3,
        "loss_metrics": [
            FAITHFULNESS,
            MINIMALITY,
            PERSISTENT | {"scope": {"type": "bsc"}, "start_frac": 0.0, "n_warmup_steps": 0},
        ],
    },
    "cadence": {"train_log_every": 2, "save_every": 3},
    "eval": {
        "batch_size": 8,
        "n_steps": 2,
        "every": 3,
        "slow_every": 3,
        "metrics": [{"type": "CI_L0", "ci_alive_threshold": 0.1}, {"type": "CIMaskedReconLoss"}],
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("traced")
    return decompose(CONTENT, target=network(), data=tokens, out_dir=out, run_id="traced", quiet=True)


def test_a_traced_network_is_trained_and_opened(trained: Run) -> None:
    assert trained.status == "finished" and trained.step == 6
    layers = [f"layers.{i}.{name}" for i in range(3) for name in ("up", "down")]
    assert trained.sites == ("embed", *layers, "head/weight")
    assert {p.name for p in trained.path.iterdir()} >= {"config.yaml", "run.json", "metrics.jsonl", "report.html"}
    assert not (trained.path / "target.safetensors").exists()
    facts = json.loads((trained.path / "run.json").read_text())
    assert facts["target"] == "traced" and facts["fingerprint"] == network().fingerprint()

    batch = tokens(jax.random.key(5), 4)
    run = open_run(trained.path, target=network())
    np.testing.assert_allclose(run.output(batch), forward(stacked(), batch), atol=1e-6)
    ci = run.causal_importances(batch)
    assert ci["layers.1.up"].shape == (4, 5, 4) and ci["embed"].shape == (4, 5, 3)


def test_training_lowers_the_faithfulness_loss_and_records_every_site(trained: Run) -> None:
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/FaithfulnessLoss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    found = evaluate_run(open_run(trained.path, target=network(), data=tokens), 1)
    assert {"CI_L0/layers.2.down", "CI_L0/embed", "loss/CIMaskedReconLoss"} <= set(found.metrics)


def test_an_interrupted_run_goes_on_to_the_same_bytes(trained: Run, tmp_path: Path) -> None:
    cut = tmp_path / "traced"
    shutil.copytree(trained.path, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    facts = json.loads((cut / "run.json").read_text()) | {"status": "stopped"}
    (cut / "run.json").write_text(json.dumps(facts))
    again = decompose(cut / "config.yaml", target=network(), data=tokens, out_dir=tmp_path, quiet=True)
    assert again.step == 6
    for a, b in zip(jax.tree.leaves(again.decomposition), jax.tree.leaves(trained.decomposition), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_of_another_network_is_refused(trained: Run) -> None:
    def other(model, tokens):
        return forward(model, tokens) * 2.0

    for target, reason in (
        (None, "a function that was traced in Python"),
        (network(seed=1), "its weights differ"),
        (network(C=5), "its sites differ"),
        (network(function=other), "the same weights in another program"),
    ):
        with pytest.raises(RunError, match=reason):
            open_run(trained.path, target=target)


def test_without_data_nothing_is_evaluated(trained: Run) -> None:
    with pytest.raises(RunError, match="has no batches of its own"):
        evaluate_run(open_run(trained.path, target=network()))


def test_the_command_line_points_to_python(vpd: Vpd, trained: Run) -> None:
    for command in (("evaluate", trained.path), ("train", trained.path / "config.yaml"), ("train", trained.path)):
        code, _, err = vpd(*command)
        assert code == 2 and "traced in Python" in one_line(err)
    assert vpd("report", trained.path).code == 0


@pytest.mark.parametrize(
    ("content", "data", "reason"),
    [
        (CONTENT, None, "go together"),
        (CONTENT, lambda key, n: tokens(key, n)[:, :4], r"gives int32\[8, 4\], and the target was traced with"),
        (CONTENT | {"target": TINY["target"]}, tokens, "target: the network is the traced one"),
        (CONTENT | {"data": TINY["data"]}, tokens, "data: a traced target is given its batches in Python"),
        (CONTENT | {"pd": TINY["pd"]}, tokens, "pd.decomposition_targets: the sites of a traced target"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(content, data, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VpdError, match=reason):
        decompose(content, target=network(), data=data, out_dir=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()
