"""The axes of a run file's objective as its models define them, and the run file of one choice on each."""

from dataclasses import dataclass
from typing import Any, get_args  # a run file is nested blocks of anything

from properties.covering import Case, Value
from pydantic.fields import FieldInfo

from vpd.config.block import Block
from vpd.config.importance import CIConfig
from vpd.config.losses import FreshAdversary, Loss, PersistentAdversary, ReconTerm, Routed
from vpd.config.run import PD
from vpd.config.schedule import Optimizer
from vpd.config.sources import Routing, ScopeType
from vpd.config.vocabulary import blocks_in, choices_in, required_keys, tags_of, words_of
from vpd.objective.build import GRID

LOSS_BLOCKS: dict[str, type[Block]] = {block.__name__: block for block in get_args(Loss)}


def _choices(block: type[Block], key: str) -> tuple[str, ...]:
    return choices_in(block.model_fields[key].annotation)


def _tags(union: object) -> tuple[str, ...]:
    return tuple(tag for block in blocks_in(union) for tag in tags_of(block))


# What comes first is taken where nothing is gained by another value.
AXES: dict[str, tuple[object, ...]] = {
    "loss": tuple(dict.fromkeys([*GRID, *LOSS_BLOCKS])),
    "target": ("tms", "resid_mlp", "induction"),
    "routing": (None, *_tags(Routing)),
    "scope": (None, *get_args(ScopeType)),
    "coeff": (0.5, 0.0),
    "rider": (False, True),
    "use_delta_component": (True, False),
    "sampling": _choices(PD, "sampling"),
    "sigmoid_type": _choices(PD, "sigmoid_type"),
    "initialization": _choices(PD, "initialization"),
    "fn_type": _tags(CIConfig),
    "components_optimizer": _choices(Optimizer, "type"),
    "ci_fn_optimizer": _choices(Optimizer, "type"),
}


def refused_key(one: Value, other: Value) -> str | None:
    """The key that a run file with these two values is refused by, None where they go together."""
    met = dict((one, other))
    if "loss" in met:
        return _refused_with_loss(met)
    if "scope" in met and "target" in met:
        return "scope" if met["scope"] in ("sc", "bsc") and met["target"] != "induction" else None
    if met == {"fn_type": "mlp", "ci_fn_optimizer": "muon"}:  # gates of one hidden layer are vectors
        return "pd.ci_fn_optimizer.type"
    return None


def _refused_with_loss(met: Case) -> str | None:
    place, loss = "pd.loss_metrics[0]", LOSS_BLOCKS.get(str(met["loss"]))
    if loss is None:  # a metric alone
        return f"{place}.type"
    if met.get("routing") is not None and not issubclass(loss, Routed):
        return f"{place}.routing"
    if met.get("rider") and not issubclass(loss, ReconTerm):
        return f"{place}.hidden_acts_reconstruction"
    if met.get("coeff") == 0 and issubclass(loss, PersistentAdversary):
        return f"{place}.coeff"
    if "scope" not in met:
        return None
    if issubclass(loss, FreshAdversary):
        return f"{place}.mask_scope" if met["scope"] in (None, "nsc") else None
    return None if issubclass(loss, PersistentAdversary) == (met["scope"] is not None) else f"{place}.scope"


# Sizes that keep a step small; no C reaches a rank, so that no start is exact.
SMALL: dict[str, object] = {
    "hidden_dims": [3],
    "d_model": 4,
    "n_blocks": 1,
    "n_heads": 1,
    "mlp_hidden_dim": [3],
    "n_steps": 2,
    "sites_per_chunk": 2,
    "n_samples": 2,
    "n_warmup_steps": 1,
}
PRETRAIN = {"steps": 1, "batch_size": 4, "lr": 0.01}


@dataclass(frozen=True)
class SmallTarget:
    """A target block, its data, the decomposed sites, and the identities inserted before some."""

    block: dict[str, Any]
    data: dict[str, Any] | None
    sites: tuple[str, ...]
    identities: tuple[str, ...] = ()


TARGETS = {
    # Tied; the hidden layer stays frozen.
    "tms": SmallTarget(
        {"n_features": 5, "n_hidden": 4, "n_hidden_layers": 1}, {"feature_probability": 1.0}, ("linear1", "linear2")
    ),
    "resid_mlp": SmallTarget(
        {"n_features": 5, "d_embed": 4, "d_mlp": 4, "n_layers": 1, "act_fn_name": "gelu"}
        | {"in_bias": True, "out_bias": True, "fixed_identity_embedding": False},
        {"feature_probability": 1.0},
        ("layers.0.mlp_in", "layers.0.mlp_out"),
        ("layers.0.mlp_out",),
    ),
    # Queries, keys and outputs stay frozen.
    "induction": SmallTarget(
        {"kind": "induction", "vocab": 6, "n_layers": 1, "n_heads": 1, "d_model": 4, "seq_len": 8},
        None,
        ("wte", "h.0.attn.v_proj", "lm_head"),
    ),
}


def document(case: Case) -> dict[str, Any]:
    """The run file of a case."""
    target = TARGETS[str(case["target"])]
    pd = {key: case[key] for key in ("use_delta_component", "sampling", "sigmoid_type", "initialization")}
    optimizers = {
        key: {"type": case[key], "lr_schedule": {"start_val": 0.01}}
        for key in ("components_optimizer", "ci_fn_optimizer")
    }
    return {
        "target": target.block | {"pretrain": PRETRAIN},
        "data": target.data,
        "cadence": {"train_log_every": 1},
        "pd": pd
        | optimizers
        | {
            "seed": 3,
            "n_mask_samples": 2,
            "decomposition_targets": [{"module_pattern": site, "C": 3} for site in target.sites],
            "identity_decomposition_targets": [{"module_pattern": s, "C": 3} for s in target.identities] or None,
            "ci_config": _ci_config(str(case["fn_type"])),
            "loss_metrics": [_loss(case)],
            "steps": 4,
            "batch_size": 8,  # few enough to be fast, enough for every site to be routed somewhere
        },
    }


def _ci_config(fn_type: str) -> dict[str, Any]:
    block = next(block for block in blocks_in(CIConfig) if fn_type in tags_of(block))
    return written(block) | {"fn_type": fn_type}


def _loss(case: Case) -> dict[str, Any]:
    """The loss with what the case chooses, be it legal or not."""
    block, scope = LOSS_BLOCKS.get(str(case["loss"])), case["scope"]
    # Exponents are those of the closed forms in the tests.
    loss = {"type": case["loss"]} if block is None else written(block)
    loss = {k: v for k, v in loss.items() if k not in ("scope", "mask_scope")} | {"coeff": case["coeff"]}
    if case["routing"] is not None:
        loss["routing"] = {"type": case["routing"]} | ({"p": 0.8} if case["routing"] == "static_probability" else {})
    if scope is not None and block is not None and issubclass(block, FreshAdversary):
        loss["mask_scope"] = scope
    elif scope is not None:
        loss["scope"] = {"type": scope} | ({"n_sources": 2} if scope == "nsc" else {})
    if case["rider"]:
        loss["hidden_acts_reconstruction"] = {"coeff": 0.25, "sites": ["*"]}
    return loss


def written(block: type[Block]) -> dict[str, Any]:
    """What a block requires, as its models exemplify it, with small sizes."""
    fields = required_keys(block) | {k: f for k, f in block.model_fields.items() if k in SMALL}
    return {key: _value(key, field) for key, field in fields.items()}


def _value(key: str, field: FieldInfo) -> object:
    if key in SMALL:
        return SMALL[key]
    if field.examples:
        return field.examples[0]
    choices, blocks = choices_in(field.annotation), blocks_in(field.annotation)
    if blocks:
        return written(blocks[0])
    return choices[0] if choices else words_of(field)[0].example
