"""Run files of toys that fail on purpose, each in one way, and a healthy one."""

from pathlib import Path

import yaml
from tiny_run import Document, replaced

EXAMPLE = Path(__file__).parents[2] / "examples" / "tms_5-2.yaml"
METRICS = [{"type": "CI_L0", "ci_alive_threshold": 0.1}]
SHORT = {"pd__steps": 4000, "eval__every": 200, "eval__slow_every": 4000, "eval__n_steps": 10, "eval__metrics": METRICS}


def example(**changes: object) -> Document:
    """The example of the README with dotted keys replaced; the adversary is the last loss, sparsity the second."""
    return replaced(yaml.safe_load(EXAMPLE.read_text()), SHORT | changes)


def with_loss(index: int, **changes: object) -> Document:
    """The example with one loss changed."""
    document = example()
    losses = document["pd"]["loss_metrics"]
    losses[index] = replaced(losses[index], changes)
    return document


def small() -> Document:
    """Three subcomponents for five features."""
    document = example()
    for site in document["pd"]["decomposition_targets"]:
        site["C"] = 3
    return document


def unfaithful() -> Document:
    """A ResidMLP whose features fill half of the embedding: nothing but faithfulness tells of the other half."""
    document = example()
    losses = document["pd"]["loss_metrics"]
    losses[0]["coeff"] = 0.0
    return document | {
        "target": {
            "n_features": 6, "d_embed": 12, "d_mlp": 6, "n_layers": 1, "act_fn_name": "relu",
            "in_bias": False, "out_bias": False, "fixed_identity_embedding": False,
            "pretrain": {"steps": 1000, "batch_size": 256, "lr": 3e-3},
        },
        "data": {"feature_probability": 0.1},
        "pd": document["pd"] | {
            "decomposition_targets": [{"module_pattern": "layers.*", "C": 20}],
            "steps": 2000,
            "batch_size": 256,
        },
        "eval": document["eval"] | {"every": 100, "slow_every": 2000, "batch_size": 256},
    }  # fmt: skip


def exploding() -> Document:
    """Steps of 3 without faithfulness and without a delta that could be masked."""
    document = example(
        pd__steps=1000,
        eval__every=50,
        eval__slow_every=1000,
        pd__use_delta_component=False,
        pd__components_optimizer={"lr_schedule": {"start_val": 3.0}},
    )
    document["pd"]["loss_metrics"][0]["coeff"] = 0.0
    return document


def untied() -> Document:
    """Sites on their own, and an adversary from the first step: features merge."""
    document = example(pd__tied_weights=[])
    document["pd"]["loss_metrics"][4]["start_frac"] = 0.0
    return document


FAILING: dict[str, Document] = {
    "collapsed importance": with_loss(1, coeff=1.0),
    "too dense": with_loss(1, coeff=0.0),
    "polysemantic by sign": untied(),
    "under-trained": example(pd__steps=300, eval__every=15, eval__slow_every=300),
    "unfaithful sum": unfaithful(),
    "dead adversary": with_loss(4, optimizer__lr_schedule__start_val=0.0),
    "exploding deltas": exploding(),
    "C too small": small(),
}
HEALTHY = example(pd__steps=10_000, eval__every=500, eval__slow_every=10_000)
