"""Tells the vocabularies of run files apart by keys that only one of them has."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vpd.config.values import is_block, is_list

Vocabulary = Literal["flat", "knots", "older pretraining"]

_FLAT = (
    "module_info",
    "identity_module_info",
    "loss_metric_configs",
    "eval_metric_configs",
    "task_config",
    "ci_fn_type",
    "ci_fn_hidden_dims",
    "output_loss_type",
    "pretrained_model_class",
    "pretrained_model_path",
    "pretrained_model_name",
    "pretrained_model_output_attr",
    "train_log_freq",
    "eval_freq",
    "slow_eval_freq",
    "n_eval_steps",
    "print_freq",
    "image_freq",
    "wandb_run_name_prefix",
    "faithfulness_coeff",
    "stochastic_recon_coeff",
    "importance_minimality_coeff",
)
_KNOTS_NESTED = frozenset({"checkpointing", "points", "source_shape"})
_OLD_PRETRAINING = ("num_iterations", "warmup_iters", "learning_rate_decay_frac", "val_loss_every")


class Recognised(NamedTuple):
    """An older vocabulary, and the dotted key by which it was known."""

    vocabulary: Vocabulary
    key: str


def recognise(document: Mapping[str, object]) -> Recognised | None:
    """Which older vocabulary a file is in; None for today's, or none at all."""
    if "pd" not in document:
        by_name: tuple[tuple[Vocabulary, tuple[str, ...]], ...] = (
            ("flat", _FLAT),
            ("older pretraining", _OLD_PRETRAINING),
        )
        for vocabulary, keys in by_name:
            found = next((key for key in keys if key in document), None)
            if found is not None:
                return Recognised(vocabulary, found)
    newer = "decomposition" if "decomposition" in document else _nested(document, "")
    return None if newer is None else Recognised("knots", newer)


def _nested(value: object, key: str) -> str | None:
    """The first dotted key that only the knots vocabulary has."""
    if is_block(value):
        children = [
            (f"{key}.{name}" if key else name, name, child) for name, child in value.items() if name != "groups"
        ]
    elif is_list(value):
        children = [(f"{key}[{i}]", "", child) for i, child in enumerate(value)]
    else:
        return None
    for path, name, _ in children:
        if name in _KNOTS_NESTED:
            return path
    return next((found for path, _, child in children if (found := _nested(child, path))), None)
