"""Damaged and silly run files, each with the key its refusal has to name.

A whole-file fault names the file, so its key is `.yaml`.
"""

from good_file import (
    GOOD,
    INDUCTION,
    PERSISTENT,
    RESID,
    Document,
    as_bytes,
    changed,
    edited,
    renamed,
    without,
)

_GOOD = as_bytes(GOOD)
_METRICS: list[Document] = GOOD["eval"]["metrics"]
_LOSSES: list[Document] = GOOD["pd"]["loss_metrics"]

_DAMAGED: list[tuple[str, bytes, str]] = [
    ("empty", b"", ".yaml"),
    ("only_comments", b"# nothing\n---\n", ".yaml"),
    ("null_document", b"null\n", ".yaml"),
    ("binary", bytes(range(256)) * 4, ".yaml"),
    ("png_header", b"\x89PNG\r\n\x1a\n\x00\x00", ".yaml"),
    ("utf16", "pd: {}".encode("utf-16"), ".yaml"),
    ("latin1", b"run_name: caf\xe9\n", ".yaml"),
    ("nul_bytes", b"pd:\x00\n", ".yaml"),
    ("top_level_list", b"- pd\n- eval\n", ".yaml"),
    ("top_level_text", b"hello there\n", ".yaml"),
    ("top_level_number", b"42\n", ".yaml"),
    ("truncated", _GOOD[: len(_GOOD) // 2] + b": : [", ".yaml"),
    ("bad_indent", b"pd:\n  steps: 3\n bad: 2\n", ".yaml"),
    ("tabs", b"pd:\n\tsteps: 3\n", ".yaml"),
    ("unclosed_bracket", b"pd: [1, 2\n", ".yaml"),
    ("unclosed_quote", b'pd: "abc\n', ".yaml"),
    ("duplicate_key", b"pd: {}\npd: {}\n", ".yaml"),
    ("duplicate_inner_key", b"pd:\n  steps: 1\n  steps: 2\n", ".yaml"),
    ("two_documents", _GOOD + b"---\n" + _GOOD, ".yaml"),
    ("python_object", b"pd: !!python/object/apply:os.system ['true']\n", ".yaml"),
    ("unknown_tag", b"pd: !secret 3\n", ".yaml"),
    ("undefined_alias", b"pd: *nothing\n", ".yaml"),
    ("deep_lists", b"pd: " + b"[" * 5000 + b"]" * 5000, ".yaml"),
    ("deep_lists_unclosed", b"[" * 20000, ".yaml"),
    ("deep_blocks", b"".join(b" " * i + b"a:\n" for i in range(60)), "a.a.a"),
    ("recursive_alias", b"pd: &x\n  steps: *x\n", "pd.steps"),
    ("recursive_list", b"pd: &x [1, *x]\n", "pd[1]"),
    (
        "alias_bomb",
        b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)),
        "a4",
    ),
    ("huge_integer_text", b"pd:\n  steps: " + b"9" * 5000 + b"\n", ".yaml"),
    ("huge_file", b"# " + b"x" * 2_000_000, ".yaml"),
    ("number_as_key", b"pd:\n  3: 4\n", "pd"),
    ("null_as_key", b"pd:\n  ~: 4\n", "pd"),
    ("date", b"run_name: 2026-06-01\n", "run_name"),
    ("json_of_something_else", b'{"name": "x", "version": "1.0"}', "name"),
    ("flat_vocabulary", b"module_info: []\nloss_metric_configs: []\nsteps: 5\n", "module_info"),
    ("flat_vocabulary_scraps", b"task_config: {task_name: tms}\n", "task_config"),
    ("knots_vocabulary", b"decomposition: {sites: {kind: explicit}}\npd: {}\n", "decomposition"),
    ("older_pretraining", b"num_iterations: 5\nmodel: {}\n", "num_iterations"),
]


def _same_C(document: Document) -> Document:
    """One number of subcomponents everywhere, so that shapes alone forbid a tie."""
    return changed("pd.decomposition_targets", [{"module_pattern": "*", "C": 10}], document)


# (id, content, key)
_SILLY: list[tuple[str, Document, str]] = [
    # misspelt and misplaced keys
    ("misspelt_steps", renamed("pd.steps", "stpes"), "pd.stpes"),
    ("misspelt_block", renamed("pd", "dp"), "dp"),
    ("misspelt_null_key", changed("pd.tied_wieghts", None), "pd.tied_wieghts"),
    ("misspelt_in_loss", renamed("pd.loss_metrics.3.n_steps", "nsteps"), "pd.loss_metrics[3].nsteps"),
    ("misspelt_in_metric", renamed("eval.metrics.0.groups", "group"), "eval.metrics[0].group"),
    (
        "misspelt_in_schedule",
        changed("pd.ci_fn_optimizer.lr_schedule.warmup", 0.1),
        "pd.ci_fn_optimizer.lr_schedule",
    ),
    ("misplaced_steps", changed("steps", 10), "steps"),
    ("capital_key", renamed("pd.seed", "Seed"), "pd.Seed"),
    ("small_c", renamed("pd.decomposition_targets.0.C", "c"), "pd.decomposition_targets[0].c"),
    ("key_with_newline", changed("pd.ba\nd", 1), "pd."),
    ("key_of_another_loss", changed("pd.loss_metrics.0.pnorm", 1.0), "pd.loss_metrics[0].pnorm"),
    ("knots_source_shape", changed("pd.loss_metrics.4.source_shape", "c"), "pd.loss_metrics[4].source_shape"),
    (
        "knots_points",
        changed("pd.ci_fn_optimizer.lr_schedule.points", []),
        "pd.ci_fn_optimizer.lr_schedule.points",
    ),
    # missing keys
    ("no_pd", without("pd"), "pd"),
    ("no_target", without("target"), "target"),
    ("no_data", without("data"), "data"),
    ("no_cadence", without("cadence"), "cadence"),
    ("no_steps", without("pd.steps"), "pd.steps"),
    ("no_C", without("pd.decomposition_targets.1.C"), "pd.decomposition_targets[1].C"),
    ("no_coeff", without("pd.loss_metrics.1.coeff"), "pd.loss_metrics[1].coeff"),
    ("no_type", without("pd.loss_metrics.2.type"), "pd.loss_metrics[2].type"),
    ("no_fn_type", without("pd.ci_config.fn_type"), "pd.ci_config.fn_type"),
    ("no_lr_schedule", without("pd.ci_fn_optimizer.lr_schedule"), "pd.ci_fn_optimizer.lr_schedule"),
    ("no_pretrain", without("target.pretrain"), "target.pretrain"),
    ("empty_target", changed("target", {}), "target"),
    ("null_steps", changed("pd.steps", None), "pd.steps"),
    ("null_pd", changed("pd", None), "pd"),
    ("empty_data", changed("data", {}), "data"),
    # wrong types
    ("steps_as_word", changed("pd.steps", "many"), "pd.steps"),
    ("steps_as_text", changed("pd.steps", "200"), "pd.steps"),
    ("steps_as_float", changed("pd.steps", 200.0), "pd.steps"),
    ("steps_as_list", changed("pd.steps", [200]), "pd.steps"),
    ("steps_as_flag", changed("pd.steps", True), "pd.steps"),
    ("flag_as_word", changed("pd.use_delta_component", "yes"), "pd.use_delta_component"),
    ("flag_as_number", changed("pd.use_delta_component", 1), "pd.use_delta_component"),
    ("coeff_as_flag", changed("pd.loss_metrics.0.coeff", True), "pd.loss_metrics[0].coeff"),
    ("coeff_as_word", changed("pd.loss_metrics.0.coeff", "1e"), "pd.loss_metrics[0].coeff"),
    ("pd_as_list", changed("pd", [1]), "pd"),
    ("eval_as_text", changed("eval", "yes"), "eval"),
    ("losses_as_block", changed("pd.loss_metrics", {"FaithfulnessLoss": 1}), "pd.loss_metrics"),
    ("loss_as_text", changed("pd.loss_metrics.0", "FaithfulnessLoss"), "pd.loss_metrics[0]"),
    ("metric_as_text", changed("eval.metrics.0", "CI_L0"), "eval.metrics[0]"),
    ("hidden_dims_as_number", changed("pd.ci_config.hidden_dims", 8), "pd.ci_config.hidden_dims"),
    ("hidden_dims_of_words", changed("pd.ci_config.hidden_dims", ["a"]), "pd.ci_config.hidden_dims[0]"),
    ("type_as_list", changed("pd.loss_metrics.0.type", [1]), "pd.loss_metrics[0].type"),
    ("run_name_as_number", changed("run_name", 3), "run_name"),
    ("run_name_of_two_lines", changed("run_name", "a\nb"), "run_name"),
    ("run_id_as_path", changed("run_id", "../x"), "run_id"),
    ("groups_as_list", changed("eval.metrics.0.groups", ["linear1"]), "eval.metrics[0].groups"),
    ("group_as_text", changed("eval.metrics.0.groups", {"a": "linear1"}), "eval.metrics[0].groups.a"),
    ("betas_of_three", changed("pd.ci_fn_optimizer.betas", [0.9, 0.9, 0.9]), "pd.ci_fn_optimizer.betas"),
    ("target_as_text", changed("target", "tms"), "target"),
    ("schema_version_two", changed("schema_version", 2), "schema_version"),
    ("schema_version_flag", changed("schema_version", True), "schema_version"),
    # out of range
    ("zero_steps", changed("pd.steps", 0), "pd.steps"),
    ("negative_steps", changed("pd.steps", -5), "pd.steps"),
    ("huge_steps", changed("pd.steps", 10**30), "pd.steps"),
    ("zero_batch", changed("pd.batch_size", 0), "pd.batch_size"),
    ("zero_C", changed("pd.decomposition_targets.0.C", 0), "pd.decomposition_targets[0].C"),
    ("negative_seed", changed("pd.seed", -1), "pd.seed"),
    ("negative_coeff", changed("pd.loss_metrics.0.coeff", -1.0), "pd.loss_metrics[0].coeff"),
    ("nan_coeff", changed("pd.loss_metrics.0.coeff", float("nan")), "pd.loss_metrics[0].coeff"),
    ("infinite_lr", changed("pd.ci_fn_optimizer.lr_schedule.start_val", float("inf")), "start_val"),
    ("overflowing_lr", changed("pd.ci_fn_optimizer.lr_schedule.start_val", "1e999"), "start_val"),
    ("negative_lr", changed("pd.ci_fn_optimizer.lr_schedule.start_val", -1e-3), "start_val"),
    ("beta_of_one", changed("pd.ci_fn_optimizer.betas", [0.9, 1.0]), "pd.ci_fn_optimizer.betas[1]"),
    ("zero_clip", changed("pd.ci_fn_optimizer.grad_clip_norm", 0), "pd.ci_fn_optimizer.grad_clip_norm"),
    ("warmup_over_one", changed("pd.ci_fn_optimizer.lr_schedule.warmup_pct", 5), "warmup_pct"),
    ("probability_over_one", changed("data.feature_probability", 1.5), "data.feature_probability"),
    ("probability_zero", changed("data.feature_probability", 0), "data.feature_probability"),
    ("routing_over_one", changed("pd.loss_metrics.2.routing.p", 2), "pd.loss_metrics[2].routing.p"),
    ("zero_pnorm", changed("pd.loss_metrics.1.pnorm", 0), "pd.loss_metrics[1].pnorm"),
    ("start_frac_of_one", changed("pd.loss_metrics.4.start_frac", 1.0), "pd.loss_metrics[4].start_frac"),
    (
        "start_frac_past_the_end",
        changed("pd.loss_metrics.4.start_frac", 0.999),
        "pd.loss_metrics[4].start_frac",
    ),
    ("zero_log_every", changed("cadence.train_log_every", 0), "cadence.train_log_every"),
    ("zero_hidden_dim", changed("pd.ci_config.hidden_dims", [0]), "pd.ci_config.hidden_dims[0]"),
    ("empty_losses", changed("pd.loss_metrics", []), "pd.loss_metrics"),
    ("empty_sites", changed("pd.decomposition_targets", []), "pd.decomposition_targets"),
    ("zero_features", changed("target.n_features", 0), "target.n_features"),
    ("zero_dispatch", changed("runtime", {"steps_per_dispatch": 0}), "runtime.steps_per_dispatch"),
    # unknown choices
    ("unknown_loss", changed("pd.loss_metrics.0.type", "FaithfullnessLoss"), "pd.loss_metrics[0].type"),
    (
        "metric_as_loss",
        changed("pd.loss_metrics.0", {"type": "CI_L0", "coeff": 1}),
        "pd.loss_metrics[0].type",
    ),
    (
        "trained_ci_hidden_acts",
        changed("pd.loss_metrics.0.type", "CIHiddenActsReconLoss"),
        "pd.loss_metrics[0].type",
    ),
    ("unknown_metric", changed("eval.metrics.0.type", "CI_L1"), "eval.metrics[0].type"),
    ("unknown_sampling", changed("pd.sampling", "gaussian"), "pd.sampling"),
    ("unknown_sigmoid", changed("pd.sigmoid_type", "leaky-hard"), "pd.sigmoid_type"),
    ("unknown_schedule", changed("pd.ci_fn_optimizer.lr_schedule.fn_type", "cosin"), "lr_schedule.fn_type"),
    ("unknown_ci_fn", changed("pd.ci_config.fn_type", "mpl"), "pd.ci_config.fn_type"),
    ("wrong_mode", changed("pd.ci_config.mode", "global"), "pd.ci_config.mode"),
    ("unknown_scope", changed("pd.loss_metrics.4.scope.type", "batch"), "pd.loss_metrics[4].scope.type"),
    ("unknown_mask_scope", changed("pd.loss_metrics.3.mask_scope", "nsc"), "pd.loss_metrics[3].mask_scope"),
    ("unknown_init", changed("pd.loss_metrics.3.init", "zeros"), "pd.loss_metrics[3].init"),
    ("unknown_routing", changed("pd.loss_metrics.2.routing.type", "all"), "pd.loss_metrics[2].routing.type"),
    ("unknown_data_type", changed("data.data_generation_type", "one"), "data.data_generation_type"),
    ("unknown_source_optimizer", changed("pd.loss_metrics.4.optimizer.type", "adamw"), "optimizer.type"),
    # keys without effect
    ("constant_with_end", changed("pd.ci_fn_optimizer.lr_schedule.fn_type", "constant"), "final_val_frac"),
    ("anneal_without_final", changed("pd.loss_metrics.1.p_anneal_start_frac", 0.0), "p_anneal_start_frac"),
    ("anneal_end_without_final", changed("pd.loss_metrics.1.p_anneal_end_frac", 0.5), "p_anneal_end_frac"),
    ("final_without_start", changed("pd.loss_metrics.1.p_anneal_final_p", 0.4), "p_anneal_final_p"),
    (
        "warmup_lr_unused",
        edited(lambda d: d["pd"].update(faithfulness_warmup_steps=0, faithfulness_warmup_lr=1)),
        "pd.faithfulness_warmup_lr",
    ),
    ("ns_steps_of_adam", changed("pd.components_optimizer.ns_steps", 6), "pd.components_optimizer.ns_steps"),
    (
        "keep_without_save",
        edited(lambda d: d.update(cadence={"train_log_every": 1, "keep_last_n_checkpoints": 2})),
        "cadence.keep_last_n_checkpoints",
    ),
    # what can't work
    (
        "anneal_backwards",
        edited(
            lambda d: d["pd"]["loss_metrics"][1].update(
                p_anneal_start_frac=0.5, p_anneal_end_frac=0.2, p_anneal_final_p=0.4
            )
        ),
        "p_anneal_end_frac",
    ),
    (
        "swish_with_moving_p",
        edited(
            lambda d: (
                d["pd"].update(sigmoid_type="swish_hard"),
                d["pd"]["loss_metrics"][1].update(pnorm=2.0, p_anneal_start_frac=0.0, p_anneal_final_p=0.4),
            )
        ),
        "pd.loss_metrics[1].p_anneal_final_p",
    ),
    (
        "swish_with_broken_p",
        edited(lambda d: (d["pd"].update(sigmoid_type="swish_hard"), d["pd"]["loss_metrics"][1].update(pnorm=0.9))),
        "pd.loss_metrics[1].pnorm",
    ),
    ("warmup_takes_all", changed("pd.ci_fn_optimizer.lr_schedule.warmup_pct", 1.0), "warmup_pct"),
    (
        "source_warmup_takes_all",
        changed("pd.loss_metrics.4.optimizer.lr_schedule.warmup_pct", 1),
        "warmup_pct",
    ),
    (
        "two_of_a_loss",
        edited(lambda d: d["pd"]["loss_metrics"].append(_LOSSES[0])),
        "pd.loss_metrics[5].name",
    ),
    ("two_of_a_metric", edited(lambda d: d["eval"]["metrics"].append(_METRICS[0])), "eval.metrics[5].name"),
    ("persistent_coeff_zero", changed("pd.loss_metrics.4.coeff", 0), "pd.loss_metrics[4].coeff"),
    (
        "persistent_only_in_eval",
        edited(lambda d: d["eval"]["metrics"].append({**PERSISTENT, "name": "other"})),
        "eval.metrics[5].type",
    ),
    ("slow_no_multiple", changed("eval.slow_every", 75), "eval.slow_every"),
    ("sequence_scope", changed("pd.loss_metrics.4.scope", {"type": "bsc"}), "pd.loss_metrics[4].scope.type"),
    ("sequence_mask_scope", changed("pd.loss_metrics.3.mask_scope", "sc"), "pd.loss_metrics[3].mask_scope"),
    (
        "nsc_no_divisor",
        changed("pd.loss_metrics.4.scope", {"type": "nsc", "n_sources": 7}),
        "scope.n_sources",
    ),
    ("eval_batch_no_multiple", changed("eval.batch_size", 100), "eval.batch_size"),
    ("mlp_without_hidden", changed("pd.ci_config.hidden_dims", []), "pd.ci_config.hidden_dims"),
    (
        "same_pattern_twice",
        changed("pd.decomposition_targets.1.module_pattern", "linear1"),
        "pd.decomposition_targets[1].module_pattern",
    ),
    (
        "overlapping_patterns",
        changed("pd.decomposition_targets.1.module_pattern", "linear*"),
        "pd.decomposition_targets[1].module_pattern",
    ),
    (
        "no_such_site",
        changed("pd.decomposition_targets.1.module_pattern", "liner2"),
        "pd.decomposition_targets[1].module_pattern",
    ),
    (
        "no_such_hidden_layer",
        edited(lambda d: d["pd"]["decomposition_targets"].append({"module_pattern": "hidden_layers.0", "C": 4})),
        "pd.decomposition_targets[2].module_pattern",
    ),
    ("tied_C_differs", changed("pd.decomposition_targets.1.C", 13), "pd.tied_weights"),
    ("tied_to_nothing", changed("pd.tied_weights", [["linear1", "linear3"]]), "pd.tied_weights"),
    ("tied_to_itself", changed("pd.tied_weights", [["linear1", "linear1"]]), "pd.tied_weights"),
    ("tied_three", changed("pd.tied_weights", [["linear1", "linear2", "linear1"]]), "pd.tied_weights[0]"),
    (
        "group_matches_nothing",
        changed("eval.metrics.0.groups", {"h": ["h.0.*"]}),
        "eval.metrics[0].groups.h[0]",
    ),
    (
        "plot_matches_nothing",
        changed("eval.metrics.2.identity_patterns", ["linear3"]),
        "identity_patterns[0]",
    ),
    ("features_differ", changed("eval.metrics.1.identity_ci.0.n_features", 6), "identity_ci[0].n_features"),
    (
        "dense_over_C",
        changed("eval.metrics.1.dense_ci", [{"layer_pattern": "linear2", "k": 13}]),
        "dense_ci[0].k",
    ),
    (
        "identity_of_nothing",
        changed("eval.metrics.1", {"type": "IdentityCIError"}),
        "eval.metrics[1].identity_ci",
    ),
    ("text_data_for_a_toy", changed("data", {"dataset_name": "a", "tokenizer_name": "b"}), "data"),
    (
        "language_metric_on_a_toy",
        changed("eval.metrics.0", {"type": "CEandKLLosses", "rounding_threshold": 0}),
        "eval.metrics[0].type",
    ),
    ("dp_no_divisor", changed("runtime", {"dp": 3}), "runtime.dp"),
    ("muon_without_a_matrix", changed("pd.ci_fn_optimizer.type", "muon"), "pd.ci_fn_optimizer.type"),
    (
        "rider_on_nothing",
        changed("pd.loss_metrics.2.hidden_acts_reconstruction", {"coeff": 1, "sites": ["linear1", "linear3"]}),
        "pd.loss_metrics[2].hidden_acts_reconstruction.sites[1]",
    ),
    (
        "rider_without_sites",
        changed("pd.loss_metrics.2.hidden_acts_reconstruction", {"coeff": 1, "sites": []}),
        "hidden_acts_reconstruction.sites",
    ),
    (
        "rider_of_a_metric_on_nothing",
        changed("eval.metrics.4.hidden_acts_reconstruction", {"coeff": 1, "sites": ["nothing.*"]}),
        "eval.metrics[4].hidden_acts_reconstruction.sites[0]",
    ),
    (
        "merged_without_adversary",
        changed(
            "pd.loss_metrics.4",
            {**PERSISTENT, "adv_fraction": 0, "type": "MergedStochasticPersistentReconLoss"},
        ),
        "pd.loss_metrics[4].adv_fraction",
    ),
    # the other toys and inserted identities
    ("resid_without_width", changed("target.d_mlp", None, RESID), "target.d_mlp"),
    ("resid_unknown_activation", changed("target.act_fn_name", "silu", RESID), "target.act_fn_name"),
    ("resid_identity_not_square", changed("target.fixed_identity_embedding", True, RESID), "fixed_identity_embedding"),
    (
        "resid_no_such_layer",
        changed("pd.decomposition_targets.0.module_pattern", "layers.2.*", RESID),
        "module_pattern",
    ),
    (
        "resid_not_transposed",
        changed("pd.tied_weights", [["layers.0.mlp_in", "layers.1.mlp_in"]], RESID),
        "tied_weights",
    ),
    ("sequence_data_for_features", changed("data", None, RESID), "data"),
    ("induction_of_another_kind", changed("target.kind", "copying", INDUCTION), "target.kind"),
    ("induction_with_data", changed("data", {"feature_probability": 0.1}, INDUCTION), "data"),
    ("induction_too_short", changed("target.seq_len", 7, INDUCTION), "target.seq_len"),
    ("induction_too_few_tokens", changed("target.vocab", 8, INDUCTION), "target.vocab"),
    ("induction_odd_heads", changed("target.n_heads", 8, INDUCTION), "target.d_model"),
    (
        "induction_no_such_layer",
        changed("pd.decomposition_targets.0.module_pattern", "h.2.*", INDUCTION),
        "module_pattern",
    ),
    (
        "induction_not_transposed",
        changed("pd.tied_weights", [["wte", "h.0.attn.q_proj"]], _same_C(INDUCTION)),
        "pd.tied_weights",
    ),
    (
        "tied_C_differs_on_sequences",
        changed("pd.tied_weights", [["wte", "h.0.attn.q_proj"]], INDUCTION),
        "tied_weights",
    ),
    ("tied_twice", changed("pd.tied_weights", [["wte", "lm_head"], ["lm_head", "wte"]], INDUCTION), "pd.tied_weights"),
    (
        "tied_in_a_chain",
        changed(
            "pd.tied_weights",
            [["h.0.attn.q_proj", "h.0.attn.k_proj"], ["h.0.attn.k_proj", "h.0.attn.v_proj"]],
            INDUCTION,
        ),
        "pd.tied_weights",
    ),
    (
        "identities_on_sequences",
        changed("eval.metrics.0", {"type": "PermutedCIPlots"}, INDUCTION),
        "eval.metrics[0].type",
    ),
    (
        "identity_errors_on_sequences",
        changed(
            "eval.metrics.0", {"type": "IdentityCIError", "dense_ci": [{"layer_pattern": "wte", "k": 2}]}, INDUCTION
        ),
        "eval.metrics[0].type",
    ),
    (
        "identity_order_on_sequences",
        changed("eval.metrics.0.identity_patterns", ["wte"], INDUCTION),
        "eval.metrics[0].identity_patterns",
    ),
    (
        "ci_transformer_too_short",
        changed(
            "pd.ci_config",
            {
                "mode": "global",
                "fn_type": "global_shared_transformer",
                "simple_transformer_ci_cfg": {
                    "d_model": 8,
                    "n_blocks": 1,
                    "attn_config": {"n_heads": 2, "max_len": 15},
                },
            },
            INDUCTION,
        ),
        "max_len",
    ),
    (
        "identity_before_a_lookup",
        changed("pd.identity_decomposition_targets", [{"module_pattern": "wte", "C": 3}], INDUCTION),
        "pd.identity_decomposition_targets[0].module_pattern",
    ),
    (
        "identity_before_nothing",
        changed("pd.identity_decomposition_targets", [{"module_pattern": "linear3", "C": 3}]),
        "pd.identity_decomposition_targets[0].module_pattern",
    ),
    (
        "identity_before_an_identity",
        changed("pd.identity_decomposition_targets", [{"module_pattern": "linear2.pre_identity", "C": 3}]),
        "pd.identity_decomposition_targets[0].module_pattern",
    ),
    (
        "identity_twice",
        changed(
            "pd.identity_decomposition_targets",
            [{"module_pattern": "linear2", "C": 3}, {"module_pattern": "*2", "C": 3}],
        ),
        "pd.identity_decomposition_targets[1].module_pattern",
    ),
    (
        "identity_tied_to_another_width",
        changed(
            "pd",
            {
                **GOOD["pd"],
                "identity_decomposition_targets": [{"module_pattern": "linear2", "C": 12}],
                "tied_weights": [["linear2.pre_identity", "linear1"]],
            },
        ),
        "pd.tied_weights",
    ),
    # not built yet
    ("stored_on_an_account", changed("target", {"run_path": "team/project/runs/0abc"}), "target.run_path"),
    ("stored_nowhere", changed("target", {"run_path": "no/such/place/at/all"}), "target.run_path"),
    ("mesh_without_devices", changed("runtime", {"mesh": {"data": 0}}), "runtime.mesh.data"),
    ("mesh_open_twice", changed("runtime", {"mesh": {"fsdp": -1}}), "runtime.mesh.fsdp"),
    ("mesh_and_dp", changed("runtime", {"mesh": {"data": 1}, "dp": 1}), "runtime.dp"),
    ("mesh_batch", changed("runtime", {"mesh": {"data": 7}}), "runtime.mesh"),
    ("mesh_splits_nothing", changed("runtime", {"mesh": {"data": -1}, "placement": "fsdp"}), "runtime.mesh"),
    (
        "resumed",
        changed("resume_provenance", {"parent_run_dir": "runs/a", "parent_step": -3}),
        "resume_provenance.parent_step",
    ),
    (
        "pretraining",
        {
            "optimizer": {"lr_schedule": {"start_val": 1}},
            "steps": 3,
            "batch_size": 2,
            "cadence": {"train_log_every": 1},
            "data": {"dataset_name": "a", "tokenizer_name": "b"},
            "target": {"spec": {"kind": "file", "path": "x", "model_class": "y"}},
        },
        "optimizer",
    ),
]

BAD_FILES: list[tuple[str, bytes, str]] = [
    *_DAMAGED,
    *((name, as_bytes(document), key) for name, document, key in _SILLY),
]
