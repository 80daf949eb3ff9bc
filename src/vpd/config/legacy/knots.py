"""The knots vocabulary, from July 2026 on: schedules as points, sites by kind of model, nested cadence."""

import re
from collections.abc import Mapping

from vpd.config.block import Block, listed, show
from vpd.config.legacy.draft import Draft
from vpd.config.legacy.knots_decomposition import DECOMPOSITION
from vpd.config.legacy.rules import (
    Field,
    Table,
    each,
    faithfulness_warmup,
    gone,
    inside,
    marks,
    native,
    only,
    to,
    walk,
)
from vpd.config.legacy.schedules import annealing, knotted, lr_schedule
from vpd.config.legacy.terms import LOSSES, METRICS, WITHOUT_COEFF, one_of, table_of
from vpd.config.losses import Frequency, SmoothL0ImportanceMinimalityLoss
from vpd.config.run import PD, Cadence, Eval, Mesh, RunConfig, Runtime, Wandb
from vpd.config.schedule import AdamSources, Optimizer
from vpd.config.targets import (
    FeatureData,
    InductionTarget,
    LMTarget,
    ResidMLPTarget,
    StoredTarget,
    TMSTarget,
    TokenData,
)
from vpd.config.values import is_block

_SHAPES = ("c", "sc", "bc", "bsc")
_RENAMED = {"MergedStochasticSubsetPPGDReconLoss": "MergedStochasticPersistentReconLoss"}
_ACCOUNT_BOUND = re.compile(r"[\w.-]+/[\w.-]+/(runs/)?[\w-]+|[\w.-]+/runs/[\w-]+|wandb:.*")
_NOT_CHOSEN = "how the program is laid out is not chosen by this field"


def convert_knots(draft: Draft) -> None:
    """Give every field of a knots file its row, and add what today's vocabulary needs."""
    walk(draft, draft.given, (), (), TOP)
    if not draft.says(("pd", "n_mask_samples")):
        draft.add(("pd", "n_mask_samples"), 1, "the old file has no such key; one random mask a term and step")
    if not draft.says(("cadence", "train_log_every")):
        draft.add(("cadence", "train_log_every"), 100, "the old file does not say how often a line is logged")
    if draft.says(("target", "n_hidden")) and not draft.says(("pd", "tied_weights")):
        draft.notice("pd.tied_weights is not said: where linear1 and linear2 are decomposed, a TMS target ties them.")


def _source_shape(new: str) -> Table:
    def rule(field: Field) -> None:
        if field.value in _SHAPES:
            field.move(new)
        else:
            field.refuse(f"{show(field.value)} is not a shape of sources here; write one of {listed(_SHAPES)}", new)

    return {"source_shape": rule}


def _type(field: Field) -> None:
    name = field.value
    if isinstance(name, str) and name in _RENAMED:
        field.compute("the same loss under its name here", {"type": _RENAMED[name]})
    else:
        field.move("type")


def _smooth_type(field: Field) -> None:
    field.compute("with gamma it is the smooth count", {"type": SmoothL0ImportanceMinimalityLoss.__name__})
    entry: object = field.draft.given
    for part in field.old[:-1]:
        entry = entry[part] if isinstance(part, str) and is_block(entry) else _item(entry, part)
    if is_block(entry) and entry.get("beta") is None:
        says = "the penalty on frequency is the block of that name, or there is none"
        field.draft.add((*field.beside, "beta"), 0.0, says)


def _item(entries: object, index: object) -> object:
    return entries[index] if isinstance(entries, list) and isinstance(index, int) else None


def _term_table(
    name: str, entry: Mapping[str, object], known: Mapping[str, type[Block]], special: Table
) -> Table | None:
    if name == "ImportanceMinimalityLoss" and "gamma" in entry:
        return {**_SMOOTH, **special}
    name = _RENAMED.get(name, name)
    scopes = known[name].model_fields if name in known else {}
    shape = "scope.type" if "scope" in scopes else "mask_scope"
    shapes = _source_shape(shape) if {"scope", "mask_scope"} & set(scopes) else {}
    return table_of(name, known, {**_TERM, **shapes, **special})


_FREQUENCY: Table = {
    **native(Frequency),
    "ema_halflife_steps": gone("frequencies are those of the batch, without a moving average"),
}
_SMOOTH: Table = {
    **native(SmoothL0ImportanceMinimalityLoss),
    "type": _smooth_type,
    "gamma": knotted("gamma", annealing),
    "frequency": inside(_FREQUENCY, "frequency"),
    "normalize_at_one": only(False, "as here", "the smooth count is not rescaled to 1 at importance 1"),
}
_OPTIMIZER: Table = {
    **native(Optimizer),
    "lr_schedule": knotted("lr_schedule", lr_schedule, "lr_schedule."),
    "ns_dtype": gone("Newton-Schulz iterations have no type of their own"),
}
_SOURCES: Table = {**native(AdamSources), "lr_schedule": knotted("lr_schedule", lr_schedule, "lr_schedule.")}
_TERM: Table = {"type": _type, "optimizer": inside(_SOURCES, "optimizer")}
_PD: Table = {
    **native(PD),
    "components_optimizer": inside(_OPTIMIZER, "components_optimizer"),
    "ci_fn_optimizer": inside(_OPTIMIZER, "ci_fn_optimizer"),
    "faithfulness_warmup_lr": faithfulness_warmup("faithfulness_warmup_lr", 0.001, ""),
    "faithfulness_warmup_weight_decay": faithfulness_warmup("faithfulness_warmup_weight_decay", 0.0, ""),
    "loss_metrics": each(
        "loss_metrics",
        one_of("loss", "type", LOSSES, lambda name, entry: _term_table(name, entry, LOSSES, {})),
    ),
}
_EVAL: Table = {
    **native(Eval),
    "metrics": each(
        "metrics",
        one_of("metric", "type", METRICS, lambda name, entry: _term_table(name, entry, METRICS, WITHOUT_COEFF)),
    ),
}
_RETENTION: Table = {
    "kind": marks("keep_last", "which the key says", "keep_last_n_checkpoints"),
    "n": to("keep_last_n_checkpoints"),
}
_CHECKPOINTING: Table = {
    "kind": marks("periodic", "which the key says", "save_every"),
    "save_every": to("save_every"),
    "retention": inside(_RETENTION),
}
_RUNTIME: Table = {
    **native(Runtime),
    "remat_ci_fn": only(False, "as here", "the CI function is not recomputed in the backward pass"),
    "mesh": inside({**native(Mesh), "replicate": to("data"), "tp": to("model")}, "mesh"),
    "sharding": gone(f"{_NOT_CHOSEN}; nearest is runtime.placement"),
    "compiler_options": gone(_NOT_CHOSEN),
}


def _stored(new: str) -> Table:
    def rule(field: Field) -> None:
        field.move("run_path")
        if isinstance(field.value, str) and _ACCOUNT_BOUND.fullmatch(field.value):
            way_out = "a local folder" + (
                "" if "spec" in new else ", or n_features, n_hidden ... and a pretrain: block"
            )
            field.draft.notice(
                f"{new} looks bound to an account; where there is no such folder, `vpd train` refuses it: "
                f"write {way_out} instead."
            )

    return {"run_path": rule}


def _spec(field: Field) -> None:
    if is_block(field.value) and field.value:
        table: Table = {**{name: to(name) for name in field.value}, **_stored("target.spec.run_path")}
        walk(field.draft, field.value, field.old, (*field.beside, "spec"), table)
    else:
        field.move("spec")


_TARGET: Table = {
    **native(TMSTarget, ResidMLPTarget, InductionTarget, StoredTarget, LMTarget),
    **_stored("target.run_path"),
    "spec": _spec,
    "attention_implementation": gone("a target has one way to compute attention"),
    "output_edge": lambda field: field.refuse("it has no counterpart here: outputs are formed whole"),
}
_PREPARED = "it names a prepared data set, which only its own registry knows; write dataset_name and tokenizer_name"
_DATA: Table = {
    **native(FeatureData, TokenData),
    "train": lambda field: field.draft.refuse(field.old, field.value, _PREPARED, ("data",)),
    "eval": lambda field: field.draft.refuse(field.old, field.value, _PREPARED, ("data",)),
}
TOP: Table = {
    **native(RunConfig),
    "decomposition": inside(DECOMPOSITION, "pd"),
    "pd": inside(_PD, "pd"),
    "cadence": inside({**native(Cadence), "checkpointing": inside(_CHECKPOINTING)}, "cadence"),
    "eval": inside(_EVAL, "eval"),
    "runtime": inside(_RUNTIME, "runtime"),
    "target": inside(_TARGET, "target"),
    "data": inside(_DATA, "data"),
    "wandb": inside(native(Wandb), "wandb"),
}
