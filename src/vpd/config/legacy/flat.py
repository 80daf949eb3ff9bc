"""The flat vocabulary, from before May 2026: one level of keys, losses by `classname`, one learning rate."""

from vpd.config.block import choose, listed, show
from vpd.config.importance import ChunkwiseTransformerCI, GlobalMLPCI, GlobalTransformerCI, LayerwiseCI
from vpd.config.legacy.draft import Draft, Path
from vpd.config.legacy.flat_target import TARGET, TASK_CONFIG, name_source
from vpd.config.legacy.rules import (
    Field,
    Rule,
    Table,
    cosmetic,
    each,
    faithfulness_warmup,
    gone,
    inside,
    native,
    only,
    to,
    walk,
)
from vpd.config.legacy.terms import LOSSES, METRICS, WITHOUT_COEFF, one_of, table_of
from vpd.config.run import DecompositionTarget
from vpd.config.schedule import AdamSources, LRSchedule
from vpd.config.sources import RepeatedScope
from vpd.config.values import is_block, is_list

_GROUPS = ("components_optimizer", "ci_fn_optimizer")
_MODES = dict.fromkeys(("mlp", "vector_mlp", "shared_mlp"), "layerwise") | {"global_shared_mlp": "global"}
_SCALARS = {
    "faithfulness_coeff": "FaithfulnessLoss",
    "ci_recon_coeff": "CIMaskedReconLoss",
    "ci_recon_layerwise_coeff": "CIMaskedReconLayerwiseLoss",
    "stochastic_recon_coeff": "StochasticReconLoss",
    "stochastic_recon_layerwise_coeff": "StochasticReconLayerwiseLoss",
    "importance_minimality_coeff": "ImportanceMinimalityLoss",
}
_THRESHOLDED = ("CI_L0", "ComponentActivationDensity")
_OTHER_CI = "the causal-importance functions here are those of docs/config.md"


def convert_flat(draft: Draft) -> None:
    """Give every field of a flat file its row, and add what today's vocabulary needs."""
    walk(draft, draft.given, (), (), TOP)
    name_source(draft)
    if draft.says(("eval",)):
        _complete_evaluation(draft)
    if not draft.says(("cadence", "train_log_every")):
        draft.add(("cadence", "train_log_every"), 100, "the old file does not say how often a line is logged")


def _complete_evaluation(draft: Draft) -> None:
    batch_size = draft.given.get("batch_size")
    if not draft.says(("eval", "batch_size")) and batch_size is not None:
        draft.add(("eval", "batch_size"), batch_size, "without eval_batch_size it is batch_size")
    if "eval_metric_configs" not in draft.given:
        draft.add(("eval", "metrics"), [], "no eval_metric_configs: only the losses trained on are evaluated")


def _run_name(field: Field) -> None:
    prefix = field.draft.given.get("wandb_run_name_prefix")
    if field.value == "":
        field.drop("an empty name says nothing")
    elif isinstance(prefix, str) and prefix and isinstance(field.value, str):
        field.compute(f"with the prefix {show(prefix)} before it", {"run_name": prefix + field.value})
    else:
        field.move("run_name")


def _run_name_prefix(field: Field) -> None:
    if isinstance(field.value, str) and field.value and field.draft.given.get("wandb_run_name"):
        field.compute("stands before wandb_run_name", {}, "run_name")
    else:
        field.drop("a prefix of the name shown in reports, which says nothing here")


def _for_both(name: str) -> Rule:
    def rule(field: Field) -> None:
        values = {f"pd.{group}.lr_schedule.{name}": field.value for group in _GROUPS}
        field.compute("one schedule for components and CI function is written for each", values)

    return rule


def _ci_fn_type(field: Field) -> None:
    mode = _MODES.get(field.value) if isinstance(field.value, str) else None
    if mode is None:
        field.refuse(f"{show(field.value)} is not known; {choose(field.value, _MODES)}", "pd.ci_config")
    else:
        says = f"the older name of fn_type; {field.value} is of mode {mode}"
        field.compute(says, {"pd.ci_config.mode": mode, "pd.ci_config.fn_type": field.value})


def _ci_alive_threshold(field: Field) -> None:
    entries = field.draft.given.get("eval_metric_configs")
    own: dict[str, Path] = {}
    for i, entry in enumerate(entries if is_list(entries) else ()):
        kind = entry.get("classname") if is_block(entry) else None
        if is_block(entry) and kind in _THRESHOLDED and entry.get("ci_alive_threshold") is None:
            own[f"{kind} {i}"] = ("eval", "metrics", i, "ci_alive_threshold")
    if not own:
        field.drop(f"it is the threshold of {listed(_THRESHOLDED)}, and the file has none that lacks one")
        return
    says = "one threshold for the run is written for each metric that has one"
    field.draft.compute(field.old, field.value, says, {path: field.value for path in own.values()})


def _scalar_terms(draft: Draft) -> list[str]:
    """The scalar coefficients that a file sets, in its order."""
    return [key for key in draft.given if key in _SCALARS and draft.given[key] is not None]


def _scalar_loss(key: str) -> Rule:
    def rule(field: Field) -> None:
        if field.draft.given.get("loss_metric_configs"):
            field.refuse(
                "loss_metric_configs says what is trained on, and two lists can't both hold", "pd.loss_metrics"
            )
            return
        path: Path = ("pd", "loss_metrics", _scalar_terms(field.draft).index(key))
        values: dict[Path, object] = {(*path, "type"): _SCALARS[key], (*path, "coeff"): field.value}
        if key == "importance_minimality_coeff":
            values[(*path, "beta")] = 0.0
        field.draft.compute(field.old, field.value, f"the weight of {_SCALARS[key]}", values)

    return rule


def _pnorm(field: Field) -> None:
    terms = _scalar_terms(field.draft)
    if field.draft.given.get("loss_metric_configs") or "importance_minimality_coeff" not in terms:
        field.refuse("it is the power of importance_minimality_coeff, which does not stand beside it")
        return
    index = terms.index("importance_minimality_coeff")
    field.draft.move(field.old, field.value, ("pd", "loss_metrics", index, "pnorm"))


def _print_freq(field: Field) -> None:
    if field.draft.given.get("train_log_freq") is None:
        field.move("cadence.train_log_every", says="without train_log_freq it is how often losses are shown")
    else:
        field.drop("how often the console prints; losses are logged by train_log_freq")


def _scope_type(field: Field) -> None:
    if field.value == "batch_invariant":
        says = "an older name: n sources tiled over the batch, element b using source b mod n"
        field.compute(says, {"type": "repeat_across_batch"})
        field.draft.notice(
            "scope batch_invariant is read as repeat_across_batch: n_masks sources tiled over the batch."
        )
    else:
        field.move("type")


_SCOPE: Table = {**native(RepeatedScope), "type": _scope_type, "n_masks": to("n_sources")}
_OPTIMIZER: Table = {
    **native(AdamSources),
    "lr": to("lr_schedule.start_val", "a rate without a schedule is constant"),
}
_TERM: Table = {"classname": to("type"), "scope": inside(_SCOPE, "scope"), "optimizer": inside(_OPTIMIZER, "optimizer")}
_CI_CONFIG: Table = {
    **native(LayerwiseCI, GlobalMLPCI, GlobalTransformerCI, ChunkwiseTransformerCI),
    "reader_hidden_dims": gone(_OTHER_CI),
    "d_resid_ci_fn": gone(_OTHER_CI),
    "block_groups": gone(_OTHER_CI),
    "transition_attn_config": gone(_OTHER_CI),
    "transition_hidden_dim": gone(_OTHER_CI),
}
_SITE = inside(native(DecompositionTarget))

MOVED = {
    "wandb_project": "wandb.project",
    "seed": "pd.seed",
    "autocast_bf16": "runtime.autocast_bf16",
    "n_mask_samples": "pd.n_mask_samples",
    "sampling": "pd.sampling",
    "sigmoid_type": "pd.sigmoid_type",
    "use_delta_component": "pd.use_delta_component",
    "ci_fn_hidden_dims": "pd.ci_config.hidden_dims",
    "batch_size": "pd.batch_size",
    "steps": "pd.steps",
    "grad_clip_norm_components": "pd.components_optimizer.grad_clip_norm",
    "grad_clip_norm_ci_fns": "pd.ci_fn_optimizer.grad_clip_norm",
    "faithfulness_warmup_steps": "pd.faithfulness_warmup_steps",
    "train_log_freq": "cadence.train_log_every",
    "save_freq": "cadence.save_every",
    "eval_batch_size": "eval.batch_size",
    "n_eval_steps": "eval.n_steps",
    "eval_freq": "eval.every",
    "slow_eval_freq": "eval.slow_every",
    "slow_eval_on_first_step": "eval.slow_on_first_step",
}
"""Keys whose value stands under another key today, unchanged."""
TOP: Table = {
    **TARGET,
    **{old: to(new) for old, new in MOVED.items()},
    "wandb_run_name": _run_name,
    "wandb_run_name_prefix": _run_name_prefix,
    "ci_config": inside(_CI_CONFIG, "pd.ci_config"),
    "ci_fn_type": _ci_fn_type,
    "module_info": each("pd.decomposition_targets", _SITE),
    "identity_module_info": each("pd.identity_decomposition_targets", _SITE),
    "loss_metric_configs": each(
        "pd.loss_metrics", one_of("loss", "classname", LOSSES, lambda name, _: table_of(name, LOSSES, _TERM))
    ),
    "eval_metric_configs": each(
        "eval.metrics",
        one_of("metric", "classname", METRICS, lambda name, _: table_of(name, METRICS, {**_TERM, **WITHOUT_COEFF})),
    ),
    **{key: _scalar_loss(key) for key in _SCALARS},
    "pnorm": _pnorm,
    "gradient_accumulation_steps": only(
        1, "one accumulation is none", "a batch is computed whole; write 1, batch_size is the global one"
    ),
    "lr_schedule": inside({name: _for_both(name) for name in LRSchedule.model_fields}),
    "faithfulness_warmup_lr": faithfulness_warmup("faithfulness_warmup_lr", 0.001, "pd."),
    "faithfulness_warmup_weight_decay": faithfulness_warmup("faithfulness_warmup_weight_decay", 0.0, "pd."),
    "ci_alive_threshold": _ci_alive_threshold,
    "print_freq": _print_freq,
    "image_freq": cosmetic("how often pictures are drawn; here they come with the slow evaluations"),
    "image_on_first_step": cosmetic("when pictures are drawn; here they come with the slow evaluations"),
    "task_config": inside(TASK_CONFIG, "data"),
}
