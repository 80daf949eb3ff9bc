"""Run files are read as written, dumped in full, and read back to the same configuration."""

from pathlib import Path
from typing import Any

import pytest
from good_file import GOOD, PERSISTENT, Document, as_bytes, changed, edited, without

from vpd.config import RunConfig, dump_run_file, read_run_file
from vpd.config.losses import CIMaskedReconLoss, ImportanceMinimalityLoss, PersistentPGDReconLoss
from vpd.config.targets import TMSTarget
from vpd.errors import ConfigError


def test_a_file_and_its_content_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tms_small.yaml"
    path.write_bytes(as_bytes(GOOD))
    read = read_run_file(path)
    assert read.name == "tms_small"
    assert read.notices == ()
    assert read_run_file(str(path)) == read
    content = read_run_file(GOOD)
    assert content.name is None
    assert content.config == read.config


def test_values_arrive_where_they_belong() -> None:
    config = read_run_file(GOOD).config
    assert isinstance(config.target, TMSTarget)
    assert config.site_names == ("linear1", "linear2")
    assert config.pd.ci_config.mode == "layerwise"
    assert [loss.key for loss in config.pd.loss_metrics][:2] == ["FaithfulnessLoss", "ImportanceMinimalityLoss"]
    assert isinstance(config.pd.loss_metrics[1], ImportanceMinimalityLoss)
    persistent = config.pd.loss_metrics[4]
    assert isinstance(persistent, PersistentPGDReconLoss)
    assert persistent.n_warmup_steps == 2
    assert config.eval is not None
    assert isinstance(config.eval.metrics[4], CIMaskedReconLoss)
    assert (config.target_kind, config.has_sequence) == ("tms", False)
    assert config.tied_pairs == (("linear1", "linear2"),)


def test_defaults_are_those_of_the_vocabulary() -> None:
    config = read_run_file(GOOD).config
    assert config.schema_version == 1
    assert (config.pd.sampling, config.pd.sigmoid_type) == ("continuous", "leaky_hard")
    assert config.pd.use_delta_component
    assert (config.pd.faithfulness_warmup_lr, config.pd.faithfulness_warmup_weight_decay) == (0.001, 0.0)
    assert config.pd.components_optimizer.betas == (0.9, 0.999)
    assert config.runtime.autocast_bf16 is None
    assert config.runtime.steps_per_dispatch == "auto"
    assert config.runtime.reuse_prefix
    assert config.eval is not None and config.eval.slow_on_first_step
    loss = config.pd.loss_metrics[1]
    assert isinstance(loss, ImportanceMinimalityLoss)
    assert (loss.p_anneal_start_frac, loss.p_anneal_final_p, loss.eps) == (1.0, None, 1e-12)
    persistent = config.pd.loss_metrics[4]
    assert isinstance(persistent, PersistentPGDReconLoss)
    assert (persistent.start_frac, persistent.n_samples, persistent.use_sigmoid_parameterization) == (0.0, 1, False)
    assert config.wandb is None and not config.logging.tensorboard


@pytest.mark.parametrize("written", ["3e-3", "3E-3", ".003", "0.003", 0.003])
def test_numbers_in_text_are_numbers(written: object) -> None:
    config = read_run_file(changed("pd.loss_metrics.1.coeff", written)).config
    assert config.pd.loss_metrics[1].coeff == 0.003


@pytest.mark.parametrize(
    "path",
    ["pd.seed", "pd.tied_weights", "pd.loss_metrics.1.p_anneal_final_p", "runtime", "eval", "wandb", "pd.sampling"],
)
def test_null_means_the_default(path: str) -> None:
    bare = changed(path, 0)
    owner, _, last = path.rpartition(".")
    node: Any = bare
    for part in owner.split(".") if owner else []:
        node = node[int(part)] if part.isdigit() else node[part]
    del node[last]
    assert read_run_file(changed(path, None)).config == read_run_file(bare).config


def test_inactive_keys_are_accepted_as_null() -> None:
    assert read_run_file(changed("pd.ci_config.simple_transformer_ci_cfg", None)).config == read_run_file(GOOD).config
    with pytest.raises(ConfigError, match="simple_transformer_ci_cfg"):
        read_run_file(changed("pd.ci_config.simple_transformer_ci_cfg", {"d_model": 8}))


def test_yaml_anchors_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = as_bytes(edited(lambda d: (d["pd"].pop("ci_fn_optimizer"), d["pd"].pop("components_optimizer")))).decode()
    optimizers = "  components_optimizer: &o {lr_schedule: {start_val: 1e-3}}\n  ci_fn_optimizer: *o\n"
    path.write_text(text.replace("pd:\n", f"pd:\n{optimizers}", 1))
    pd = read_run_file(path).config.pd
    assert pd.ci_fn_optimizer == pd.components_optimizer


def test_a_coefficient_of_a_metric_is_ignored_with_a_notice() -> None:
    read = read_run_file(changed("eval.metrics.4.coeff", 7.5))
    assert read.config == read_run_file(GOOD).config
    assert len(read.notices) == 1 and "eval.metrics[4].coeff" in read.notices[0]
    assert read_run_file(changed("eval.metrics.0.coeff", 1)).config == read.config


def test_notices_about_the_device_and_a_start_without_gradient() -> None:
    assert "cuda" in read_run_file(changed("runtime", {"device": "cuda"})).notices[0]
    assert "pd.loss_metrics[3].init" in read_run_file(changed("pd.loss_metrics.3.init", "ones")).notices[0]


def test_probes_of_several_budgets_have_names() -> None:
    probe: Document = {"type": "PGDReconLoss", "init": "random", "step_size": 0.1, "mask_scope": "c"}
    probes = [{**probe, "n_steps": n, "name": f"pgd_{n}"} for n in (5, 20)]
    config = read_run_file(edited(lambda d: d["eval"]["metrics"].extend(probes))).config
    assert config.eval is not None
    assert [metric.key for metric in config.eval.metrics][-2:] == ["pgd_5", "pgd_20"]


def test_a_trained_adversary_may_be_named_in_eval() -> None:
    read_run_file(edited(lambda d: d["eval"]["metrics"].append(PERSISTENT)))


def test_eval_may_be_empty_or_absent() -> None:
    assert read_run_file(changed("eval.metrics", [])).config.eval is not None
    assert read_run_file(without("eval")).config.eval is None


@pytest.mark.parametrize(
    ("edit", "pairs"),
    [
        ({"tied_weights": []}, ()),
        ({"tied_weights": [["linear2", "linear1"]]}, (("linear2", "linear1"),)),
        ({"decomposition_targets": [{"module_pattern": "linear*", "C": 12}]}, (("linear1", "linear2"),)),
        ({"decomposition_targets": [{"module_pattern": "linear1", "C": 12}]}, ()),
    ],
)
def test_tied_pairs(edit: Document, pairs: object) -> None:
    config = read_run_file(edited(lambda d: (d["pd"].update(edit), d.update(eval=None)))).config
    assert config.tied_pairs == pairs


def test_a_stored_target_is_accepted_from_a_local_path(tmp_path: Path) -> None:
    document = changed("target", {"run_path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"target\.safetensors"):
        read_run_file(document)
    (tmp_path / "target.safetensors").write_bytes(b"")
    assert read_run_file(document).config.target_kind == "tms"
    assert (
        read_run_file(changed("target", {"run_path": str(tmp_path / "target.safetensors")})).config.site_names is None
    )


def test_a_stored_resid_mlp_is_told_by_its_sites() -> None:
    document = changed("target", {"run_path": "team/project/runs/0abc"})
    document["pd"]["decomposition_targets"] = [{"module_pattern": "layers.*.mlp_in", "C": 12}]
    document["eval"] = None
    config = read_run_file(document, supported=False).config
    assert (config.target_kind, config.has_sequence, config.tied_pairs) == ("resid_mlp", False, ())


def test_a_dump_reads_back_and_writes_every_default(tmp_path: Path) -> None:
    config = read_run_file(GOOD).config
    text = dump_run_file(config)
    assert "sigmoid_type: leaky_hard" in text and "reuse_prefix: true" in text
    path = tmp_path / "config.yaml"
    path.write_text(text)
    read = read_run_file(path)
    assert read.config == config
    assert read.notices == ()
    assert dump_run_file(read.config) == text


def test_a_configuration_is_immutable() -> None:
    config = read_run_file(GOOD).config
    with pytest.raises(ValueError, match="frozen"):
        config.run_name = "x"  # pyright: ignore[reportAttributeAccessIssue] (that is what is tested)


def test_the_whole_vocabulary_is_known_before_support_is_checked() -> None:
    assert RunConfig.model_validate(changed("wandb", {"project": "p"})).wandb is not None
    assert read_run_file(changed("wandb", {"project": "p"}), supported=False).config.wandb is not None
