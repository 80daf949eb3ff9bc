"""The target and its data in the flat vocabulary: `pretrained_model_*`, `task_config`, `output_loss_type`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vpd.config.block import choose, show
from vpd.config.legacy.draft import Draft
from vpd.config.legacy.rules import Field, Rule, Table, native
from vpd.config.targets import TARGET_NAMES, FeatureData, TargetKind, TokenData
from vpd.config.values import is_block

_HUB_CLASS = "transformers."
_ACCOUNT = "wandb:"
_INDEX = re.compile(r"idx_(\d{1,6})")


@dataclass(frozen=True)
class Task:
    """A kind of target as `task_config.task_name` says it.

    Attributes:
        kind: today's kind of target.
        model: the last word of its `pretrained_model_class`; empty where any may stand.
        divergence: the `output_loss_type` that belongs to it.
        data: today's keys of its data.
    """

    kind: TargetKind
    model: str
    divergence: str
    data: frozenset[str]


_FEATURES, _TOKENS = frozenset(FeatureData.model_fields), frozenset(TokenData.model_fields)
TASKS: Mapping[str, Task] = {
    "tms": Task("tms", "TMSModel", "mse", _FEATURES),
    "resid_mlp": Task("resid_mlp", "ResidMLP", "mse", _FEATURES),
    "lm": Task("lm", "", "kl", _TOKENS),
    "ih": Task("induction", "InductionTransformer", "kl", frozenset()),
}
_OLDER_DATA = {"train_data_split": "train_split", "eval_data_split": "eval_split"}


def task_of(draft: Draft) -> Task | None:
    """What `task_config.task_name` says; None where it says nothing that is known."""
    block = draft.given.get("task_config")
    name = block.get("task_name") if is_block(block) else None
    return TASKS.get(name) if isinstance(name, str) else None


def name_source(draft: Draft) -> None:
    """Add the kind of source that a language model comes from, which its class told."""
    if draft.says(("target", "spec")):
        kind = "hf" if _is_hub_class(draft) else "pretrained"
        draft.add(("target", "spec", "kind"), kind, "where the weights come from, which pretrained_model_class tells")


def _is_hub_class(draft: Draft) -> bool:
    return str(draft.given.get("pretrained_model_class")).startswith(_HUB_CLASS)


def _by_task(rule: Rule) -> Rule:
    """A rule that needs to know the task."""

    def known(field: Field) -> None:
        if task_of(field.draft) is None:
            field.refuse("what it means depends on task_config.task_name, which is not known", "target")
        else:
            rule(field)

    return known


def _task(field: Field) -> Task:
    task = task_of(field.draft)
    assert task is not None
    return task


def _task_name(field: Field) -> None:
    task = task_of(field.draft)
    if task is None:
        said = f"{show(field.value)} is not known; {choose(field.value, TASKS)}"
        field.draft.refuse(field.old, field.value, said, ("target",))
    elif task.kind == "induction":
        said = "the sizes of the induction target are not in the file, and a stored one is not read here; "
        way_out = "write target: {kind: induction, vocab, n_layers, n_heads, d_model, seq_len, pretrain}"
        field.draft.refuse(field.old, field.value, said + way_out, ("target",))
    else:
        says = f"its own keys and the sites say that it is a {TARGET_NAMES[task.kind]} target"
        field.draft.compute(field.old, field.value, says, {}, ("target",))


def _model_class(field: Field) -> None:
    task = _task(field)
    if task.kind == "lm":
        field.move("target.spec.model_class")
    elif str(field.value).rpartition(".")[2] == task.model:
        field.compute("as task_config.task_name says too", {}, "target")
    else:
        said = f"{show(field.value)} is not the {task.model} of task_config.task_name"
        field.refuse(f"{said}; make the two agree", "target")


def _model_path(field: Field) -> None:
    task = _task(field)
    if task.kind == "induction":
        field.refuse("a stored induction target is not read here; it is trained as its pretrain block says", "target")
    elif task.kind == "lm" and _is_hub_class(field.draft):
        field.refuse("a class of transformers is loaded by its name; write pretrained_model_name", "target.spec")
    else:
        _run_path(field, "target.spec.run_path" if task.kind == "lm" else "target.run_path")


def _model_name(field: Field) -> None:
    task = _task(field)
    is_account_bound = str(field.value).startswith(_ACCOUNT)
    if task.kind != "lm":
        field.refuse("only a language model has a name; write pretrained_model_path", "target")
    elif _is_hub_class(field.draft) and not is_account_bound:
        field.move("target.spec.model_name")
    elif is_account_bound:
        _run_path(field, "target.spec.run_path")
    else:
        said = (
            f"can't tell what {show(field.value)} names: it is no wandb: run, and the class is not one of transformers"
        )
        field.refuse(f"{said}; write a local folder as pretrained_model_path", "target.spec")


def _run_path(field: Field, new: str) -> None:
    value = field.value
    if not isinstance(value, str) or not value.startswith(_ACCOUNT):
        field.move(new)
        return
    field.compute("the run it came from, without wandb:", {new: value.removeprefix(_ACCOUNT)})
    way_out = "a local folder" if "spec" in new else "a local folder, or n_features, n_hidden ... and a pretrain: block"
    field.draft.notice(f"{new} is bound to an account, and `vpd train` refuses it; write {way_out} instead.")


def _output_attr(field: Field) -> None:
    index = _INDEX.fullmatch(field.value) if isinstance(field.value, str) else None
    if _task(field).kind != "lm":
        field.refuse("only a language model's output has parts", "target")
    elif index:
        field.compute("the index alone", {"target.output_extract": int(index[1])})
    else:
        field.move("target.output_extract")


def _tokenizer(field: Field) -> None:
    if _task(field).kind == "lm":
        field.move("data.tokenizer_name")
    else:
        field.refuse("only a language model has a tokenizer", "data")


def _output_loss(field: Field) -> None:
    task = _task(field)
    if field.value == task.divergence:
        says = f"the target decides it, and {TARGET_NAMES[task.kind]} outputs are compared by {field.value}"
        field.compute(says, {}, "target")
    else:
        said = f"{TARGET_NAMES[task.kind]} outputs are compared by {task.divergence}, got {show(field.value)}"
        field.refuse(f"{said}; write {task.divergence}", "target")


def _data(old: str, new: str) -> Rule:
    def rule(field: Field) -> None:
        task = _task(field)
        if new in task.data:
            field.move(new)
        else:
            field.refuse(f"the data of {TARGET_NAMES[task.kind]} targets have no {old}")

    return _by_task(rule)


TARGET: Table = {
    "pretrained_model_class": _by_task(_model_class),
    "pretrained_model_path": _by_task(_model_path),
    "pretrained_model_name": _by_task(_model_name),
    "pretrained_model_output_attr": _by_task(_output_attr),
    "output_loss_type": _by_task(_output_loss),
    "tokenizer_name": _by_task(_tokenizer),
}
TASK_CONFIG: Table = {
    "task_name": _task_name,
    **{key: _data(key, key) for key in native(FeatureData, TokenData)},
    **{old: _data(old, new) for old, new in _OLDER_DATA.items()},
}
