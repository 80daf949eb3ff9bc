"""Older run files become today's: what is taken, renamed, computed, dropped and refused."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from good_file import GOOD
from older_files import FLAT, FLAT_LM, KNOTS, SCALARS, Document

from vpd.config import RunConfig, read_run_file
from vpd.config.document import parse_document
from vpd.config.legacy.convert import Conversion, check_native, convert_document
from vpd.config.legacy.draft import Row
from vpd.config.losses import PersistentPGDReconLoss, SmoothL0ImportanceMinimalityLoss
from vpd.config.targets import LMTarget, StoredTarget
from vpd.errors import ConfigError


def converted(document: Document, edit: Callable[[Document], object] = lambda _: None) -> Conversion:
    older = deepcopy(document)
    edit(older)
    found = convert_document(older)
    assert found is not None
    assert sorted(str(row.old) for row in found.rows if row.old) == sorted(_leaves(older, ""))
    assert (found.config is None) == (found.text is None) == bool(found.refused)
    return found


def config_of(document: Document, edit: Callable[[Document], object] = lambda _: None) -> RunConfig:
    found = converted(document, edit)
    assert found.config is not None and found.text is not None, found.refused
    assert read_run_file(parse_document(found.text, "new"), supported=False).config == found.config
    return found.config


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}[{i}]")
    else:
        yield key


def row(found: Conversion, old: str) -> Row:
    return next(row for row in found.rows if row.old == old)


def test_a_flat_file() -> None:
    config = config_of(FLAT)
    pd, schedule = config.pd, {"start_val": 0.004, "warmup_pct": 0.05, "final_val_frac": 0.2, "fn_type": "linear"}
    assert config.target == StoredTarget(run_path="some-team/toys/runs/ab12cd34")
    assert pd.ci_config.model_dump() == {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": (24,)}
    assert pd.components_optimizer.lr_schedule.model_dump() == schedule == pd.ci_fn_optimizer.lr_schedule.model_dump()
    assert (pd.components_optimizer.grad_clip_norm, pd.ci_fn_optimizer.grad_clip_norm) == (0.5, None)
    assert (pd.seed, pd.n_mask_samples, pd.sampling, pd.sigmoid_type) == (7, 2, "binomial", "hard")
    assert [(item.module_pattern, item.C) for item in pd.decomposition_targets][2] == ("hidden_layers.*", 9)
    persistent = pd.loss_metrics[2]
    assert isinstance(persistent, PersistentPGDReconLoss)
    assert persistent.scope.model_dump() == {"type": "repeat_across_batch", "n_sources": 16}
    assert persistent.optimizer.lr_schedule.model_dump()["start_val"] == 0.02
    assert (config.cadence.train_log_every, config.cadence.save_every) == (25, 1500)
    evaluation = config.eval
    assert evaluation is not None
    assert (evaluation.batch_size, evaluation.every, evaluation.slow_every, evaluation.n_steps) == (512, 250, 750, 4)
    assert not evaluation.slow_on_first_step
    assert [getattr(metric, "ci_alive_threshold", None) for metric in evaluation.metrics] == [0.15, 0.3, None, None]
    assert config.wandb is not None and config.wandb.project == "sparse-toys"


@pytest.mark.parametrize(
    ("old", "kind", "new"),
    [
        ("seed", "taken", "pd.seed"),
        ("train_log_freq", "renamed", "cadence.train_log_every"),
        ("loss_metric_configs[0].classname", "renamed", "pd.loss_metrics[0].type"),
        ("loss_metric_configs[2].scope.type", "computed", "pd.loss_metrics[2].scope.type"),
        ("output_loss_type", "computed", "target"),
        ("gradient_accumulation_steps", "dropped", None),
        ("image_freq", "dropped", None),
        ("print_freq", "dropped", None),
        ("identity_module_info", "dropped", None),
        ("eval_metric_configs[3].coeff", "dropped", None),
        ("ci_alive_threshold", "computed", "eval.metrics[0].ci_alive_threshold"),
    ],
)
def test_classes_of_flat_fields(old: str, kind: str, new: str | None) -> None:
    found = row(converted(FLAT), old)
    assert (found.kind, found.new) == (kind, new) and found.says


def test_readings_that_need_a_look_are_told() -> None:
    notices = " ".join(converted(FLAT).notices)
    assert "bound to an account" in notices and "pretrain:" in notices and "batch_invariant" in notices
    notices = " ".join(converted(KNOTS).notices)
    assert "layerwise_mlp" in notices and "tied_weights" in notices


def scalars(document: Document) -> None:
    del document["loss_metric_configs"]
    document.update(SCALARS)


def test_the_oldest_flat_files_have_a_scalar_for_each_loss() -> None:
    terms = [(term.key, term.coeff) for term in config_of(FLAT, scalars).pd.loss_metrics]
    assert terms == [
        ("FaithfulnessLoss", 20),
        ("CIMaskedReconLoss", 0.5),
        ("ImportanceMinimalityLoss", 3e-4),
        ("StochasticReconLoss", 1.5),
        ("StochasticReconLayerwiseLoss", 2),
    ]
    both = converted(FLAT, lambda d: d.update(SCALARS))
    assert {str(r.old) for r in both.refused} == {key for key, value in SCALARS.items() if value is not None}
    alone = converted(FLAT, lambda d: (scalars(d), d.update(importance_minimality_coeff=None)))
    assert [r.old for r in alone.refused] == ["pnorm"]


def test_the_log_takes_the_place_of_the_print_where_there_is_none() -> None:
    assert config_of(FLAT, lambda d: d.pop("train_log_freq")).cadence.train_log_every == 10


def test_a_flat_language_model() -> None:
    config = config_of(FLAT_LM)
    assert isinstance(config.target, LMTarget)
    assert config.target.model_dump()["spec"] == {
        "kind": "pretrained", "model_class": "lab.models.small.SmallLM", "run_path": "some-team/words/run-9",
    }  # fmt: skip
    assert config.target.output_extract == 2
    assert config.data is not None
    data = config.data.model_dump()
    assert (data["tokenizer_name"], data["train_split"], data["eval_split"]) == (
        "some-team/words-tokenizer",
        "most",
        "rest",
    )
    hub = {"pretrained_model_class": "transformers.GPT2LMHeadModel", "pretrained_model_name": "some-team/gpt"}
    spec = config_of(FLAT_LM, lambda d: d.update(hub)).target.model_dump()["spec"]
    assert spec == {"kind": "hf", "model_class": hub["pretrained_model_class"], "model_name": "some-team/gpt"}


def test_a_knots_file() -> None:
    config = config_of(KNOTS)
    pd = config.pd
    assert pd.initialization == "svd" and config.run_name == "small-knots"
    assert [(item.module_pattern, item.C) for item in pd.decomposition_targets] == [("linear1", 11), ("linear2", 11)]
    assert pd.ci_config.model_dump() == {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": (20, 10)}
    smooth, merged = pd.loss_metrics[0], pd.loss_metrics[1].model_dump()
    assert isinstance(smooth, SmoothL0ImportanceMinimalityLoss)
    assert (smooth.gamma, smooth.gamma_anneal_final_gamma, smooth.beta) == (2.0, 0.25, 0.0)
    assert (smooth.gamma_anneal_start_frac, smooth.gamma_anneal_end_frac) == (0.25, 0.75)
    assert merged["type"] == "MergedStochasticPersistentReconLoss" and merged["adv_fraction"] == 0.3
    assert merged["scope"] == {"type": "bc"}
    sources = {"start_val": 0.02, "warmup_pct": 0.1, "final_val_frac": 1.0, "fn_type": "constant"}
    assert merged["optimizer"]["lr_schedule"] == sources
    assert pd.components_optimizer.type == "muon"
    assert pd.components_optimizer.lr_schedule.model_dump() == {
        "start_val": 0.003, "warmup_pct": 0.05, "final_val_frac": 0.1, "fn_type": "cosine",
    }  # fmt: skip
    assert pd.ci_fn_optimizer.lr_schedule.model_dump() == {
        "start_val": 0.002, "warmup_pct": 0.0, "final_val_frac": 0.5, "fn_type": "linear",
    }  # fmt: skip
    assert (config.cadence.save_every, config.cadence.keep_last_n_checkpoints) == (800, 3)
    assert config.runtime.mesh is not None
    assert config.runtime.mesh.model_dump() == {"data": 2, "fsdp": 4, "model": 1}
    assert config.eval is not None and config.eval.metrics[0].model_dump()["mask_scope"] == "c"
    assert [r.new for r in converted(KNOTS).added] == [
        "pd.loss_metrics[0].beta",
        "pd.n_mask_samples",
        "cadence.train_log_every",
    ]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 1)], (2.0, 0.0, 1.0, "constant")),
        ([(0, 1), (0.4, 1), (1, 1)], (2.0, 0.0, 1.0, "constant")),
        ([(0, 0), (0.5, 1), (1, 0.5, "linear")], (2.0, 0.5, 0.5, "linear")),
        ([(0, 1), (1, 0, "cosine")], (2.0, 0.0, 0.0, "cosine")),
        ([(0, 0.5), (1, 0.125)], (1.0, 0.0, 0.25, "linear")),
        ([(0, 1), (0.9, 0.1, "cosine"), (1, 0.1)], "points at 0, 0.9, 1"),
        ([(0, 0), (0.5, 1, "cosine"), (1, 1)], "warms up by a cosine"),
        ([(0, 0), (0.5, 0), (1, 1)], "0 for longer"),
        ([(0, 1), (0.9, 0.1)], "points at 0, 0.9"),
        ([(0.1, 1), (1, 1)], "from at 0"),
        ([(0, 1), (1, 0.5, "step")], "linear or cosine"),
    ],
)
def test_knots_are_a_schedule_or_are_refused(points: list[tuple[Any, ...]], expected: object) -> None:
    written = [dict(zip(("at", "frac", "interp"), point, strict=False)) for point in points]

    def edit(document: Document) -> None:
        document["pd"]["ci_fn_optimizer"]["lr_schedule"] = {"max_val": 2.0, "points": written}

    if isinstance(expected, str):
        refused = converted(KNOTS, edit).refused
        assert {str(r.old).partition(".lr_schedule")[0] for r in refused} == {"pd.ci_fn_optimizer"}
        assert all(expected in r.says for r in refused)
    else:
        schedule = config_of(KNOTS, edit).pd.ci_fn_optimizer.lr_schedule
        got = (schedule.start_val, schedule.warmup_pct, schedule.final_val_frac, schedule.fn_type)
        assert got == expected


@pytest.mark.parametrize(
    ("kind", "cs", "pattern"),
    [
        ("simple_mlp", {"q_proj": 30, "c_fc": 70}, ["h.*.attn.q_proj", "h.*.mlp.c_fc"]),
        (
            "glu_transformer",
            {"gate_proj": 9, "o_proj": None, "k_proj": 5},
            ["model.layers.*.mlp.gate_proj", "model.layers.*.self_attn.k_proj"],
        ),
    ],
)
def test_kinds_of_model_are_patterns(kind: str, cs: Document, pattern: list[str]) -> None:
    def edit(document: Document) -> None:
        document["decomposition"] = {
            "sites": {"kind": kind, "layers": {"kind": "all"}, "cs": cs},
            "ci": {
                "type": "chunkwise_transformer",
                "blocks_per_chunk": 3,
                "d_model": 48,
                "n_blocks": 2,
                "attention": {"kind": "mha", "n_heads": 4},
                "ffn": {"kind": "gelu", "hidden": 96},
            },
        }
        document["target"] = {"spec": {"kind": "pretrained", "model_class": "a.B", "run_path": "models/b"}}
        document["data"] = {"dataset_name": "some/text", "tokenizer_name": "some/tokens"}

    config = config_of(KNOTS, edit)
    given = [C for C in cs.values() if C is not None]
    assert [(item.module_pattern, item.C) for item in config.pd.decomposition_targets] == list(
        zip(pattern, given, strict=True)
    )
    ci = config.pd.ci_config.model_dump()
    assert (ci["mode"], ci["sites_per_chunk"]) == ("chunkwise", 6)
    assert ci["simple_transformer_ci_cfg"]["mlp_hidden_dim"] == (96,)


def _set(path: str, value: object) -> Callable[[Document], object]:
    def edit(document: Any) -> None:
        *owners, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in owners:
            document = document[part]
        document[last] = value

    return edit


REFUSALS = [
    (FLAT, "stesp", 5, "stesp", "steps"),
    (FLAT, "module_info.0.c", 5, "module_info[0].c", "C"),
    (FLAT, "task_config.max_seq_len", 5, "task_config.max_seq_len", "TMS"),
    (FLAT, "output_loss_type", "kl", "output_loss_type", "mse"),
    (FLAT, "pretrained_model_class", "lab.ResidMLP", "pretrained_model_class", "agree"),
    (FLAT, "pretrained_model_name", "x", "pretrained_model_name", "pretrained_model_path"),
    (FLAT, "tokenizer_name", "x", "tokenizer_name", "language model"),
    (FLAT, "task_config.task_name", "tsm", "task_config.task_name", "tms"),
    (FLAT, "ci_fn_type", "shared_lmp", "ci_fn_type", "shared_mlp"),
    (FLAT, "gradient_accumulation_steps", 4, "gradient_accumulation_steps", "global"),
    (FLAT, "gradient_accumulation_steps", True, "gradient_accumulation_steps", "global"),
    (FLAT, "loss_metric_configs.1.classname", "StochasticReconSubsetLos", "loss_metric_configs[1].classname", "Loss"),
    (FLAT, "loss_metric_configs.1.source_shape", "c", "loss_metric_configs[1].source_shape", "no known field"),
    (FLAT, "loss_metric_configs.0.eps", -1, "loss_metric_configs[0].eps", "> 0"),
    (FLAT, "loss_metric_configs.2.scope.n_masks", 13, "loss_metric_configs[2].scope.n_masks", "batch_size 512"),
    (FLAT, "slow_eval_freq", 300, "slow_eval_freq", "multiple"),
    (FLAT, "lr_schedule.warmup_pct", 1, "lr_schedule.warmup_pct", "warm-up"),
    (FLAT, "ci_config", {"fn_type": "mlp"}, "ci_config.fn_type", "given already"),
    (FLAT_LM, "ci_config.block_groups", [1], "ci_config.block_groups", "counterpart"),
    (FLAT_LM, "pretrained_model_name", "plain", "pretrained_model_name", "can't tell"),
    (FLAT_LM, "task_config.feature_probability", 0.1, "task_config.feature_probability", "language-model"),
    (KNOTS, "decomposition.sites.kind", "explcit", "decomposition.sites.kind", "explicit"),
    (KNOTS, "decomposition.sites.sites.0.name", "linear*", "decomposition.sites.sites[0].name", "glob"),
    (KNOTS, "decomposition.ci.type", "layerwise_nlp", "decomposition.ci.type", "layerwise_mlp"),
    (KNOTS, "decomposition.ci.input_tap", "all", "decomposition.ci.input_tap", "no known field"),
    (KNOTS, "decomposition.sites.initialization", "sdv", "decomposition.sites.initialization", "svd"),
    (KNOTS, "pd.loss_metrics.0.normalize_at_one", True, "pd.loss_metrics[0].normalize_at_one", "rescaled"),
    (KNOTS, "pd.loss_metrics.1.type", "PooledLoss", "pd.loss_metrics[1].type", "no loss"),
    (KNOTS, "pd.loss_metrics.1.source_shape", "nsc", "pd.loss_metrics[1].source_shape", "bsc"),
    (KNOTS, "pd.loss_metrics.1.source_shape", "bsc", "pd.loss_metrics[1].source_shape", "sequence"),
    (KNOTS, "pd.components_optimizer.ns_dtype", "float32", "pd.components_optimizer.ns_dtype", "counterpart"),
    (KNOTS, "pd.components_optimizer.lr_schedule.start_val", 1, "pd.components_optimizer.lr_schedule.start_val", ""),
    (KNOTS, "cadence.checkpointing.kind", "never", "cadence.checkpointing.kind", "periodic"),
    (KNOTS, "runtime.sharding", "owner", "runtime.sharding", "placement"),
    (KNOTS, "data.train", {"kind": "name"}, "data.train.kind", "dataset_name"),
    (KNOTS, "target.output_edge", {"kind": "x"}, "target.output_edge.kind", "counterpart"),
    (KNOTS, "pd.steps", 2.5, "pd.steps", "integer"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "path", "value", "old", "says"), REFUSALS, ids=[r[3] for r in REFUSALS])
def test_is_refused_by_its_old_name(document: Document, path: str, value: object, old: str, says: str) -> None:
    found = converted(document, _set(path, value))
    assert old in [r.old for r in found.refused]
    assert says in row(found, old).says


def test_all_refusals_are_told_at_once() -> None:
    edits = [_set("stesp", 5), _set("batch_size", 1.5), _set("output_loss_type", "kl"), _set("seed", "x")]
    found = converted(FLAT, lambda d: [edit(d) for edit in edits])
    assert {str(r.old) for r in found.refused} == {"stesp", "batch_size", "output_loss_type", "seed"}


def test_what_is_missing_is_named_as_the_old_file_would() -> None:
    found = converted(FLAT, lambda d: d.pop("steps"))
    assert [(r.old, r.new) for r in found.refused] == [(None, "pd.steps")]
    assert "write steps in the old file" in found.refused[0].says
    found = converted(FLAT, lambda d: (d.pop("eval_freq"), d.pop("eval_metric_configs")))
    assert [(r.old, r.new) for r in found.refused] == [(None, "eval.every")]
    assert "eval_freq" in found.refused[0].says


def test_a_stored_induction_target_is_refused() -> None:
    task = {"task_config": {"task_name": "ih"}, "output_loss_type": "kl"}
    task["pretrained_model_class"] = "lab.InductionTransformer"
    found = converted(FLAT, lambda d: d.update(task))
    assert {str(r.old) for r in found.refused} == {"task_config.task_name", "pretrained_model_path"}
    assert "kind: induction" in row(found, "task_config.task_name").says


def test_a_task_that_the_sites_contradict_is_refused() -> None:
    resid = {"task_name": "resid_mlp", "feature_probability": 0.1}
    found = converted(FLAT, lambda d: d.update(task_config=resid, pretrained_model_class="lab.ResidMLP"))
    assert [r.old for r in found.refused] == ["task_config.task_name"]


def test_an_older_pretraining_file_is_refused_field_by_field() -> None:
    older = {"num_iterations": 5, "warmup_iters": 1, "model": {"n_layer": 2}}
    found = converted(older)
    assert found.vocabulary == "older pretraining" and len(found.refused) == 3


def test_todays_files_are_told() -> None:
    assert convert_document(GOOD) is None
    assert check_native(GOOD) == "run file"
    pretraining = {
        "optimizer": {"lr_schedule": {"start_val": 1}},
        "steps": 3,
        "batch_size": 2,
        "cadence": {"train_log_every": 1},
        "data": {"dataset_name": "a", "tokenizer_name": "b"},
        "target": {"model_class": "GPT2", "n_layer": 1, "n_head": 1, "n_embd": 8},
    }
    assert convert_document(pretraining) is None
    assert check_native(pretraining) == "pretraining file"
    with pytest.raises(ConfigError, match="steps"):
        check_native({**pretraining, "steps": 0})
    with pytest.raises(ConfigError, match="data"):
        check_native({**GOOD, "data": None})


@pytest.mark.parametrize(("document", "vocabulary"), [(FLAT, "flat"), (KNOTS, "knots")])
def test_reading_an_older_file_names_the_way_out(document: Document, vocabulary: str) -> None:
    with pytest.raises(ConfigError, match=rf"{vocabulary} vocabulary .*`vpd config convert FILE -o NEW\.yaml`\.$"):
        read_run_file(document)


def test_the_new_file_has_the_order_of_the_vocabulary_and_numbers() -> None:
    text = converted(FLAT).text
    assert text is not None
    new = parse_document(text, "new")
    order = [key for key in RunConfig.model_fields if key in new]
    assert list(new) == order
    assert new["pd"]["loss_metrics"][0]["coeff"] == 2e-3  # pyright: ignore[reportIndexIssue] (a nested document)
    assert "'2e-3'" not in text and "tied_weights" not in text
