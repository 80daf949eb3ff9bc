"""Run files in the two older vocabularies, made up for the tests."""

from typing import Any  # a run file is nested blocks of anything; tests edit it freely

Document = dict[str, Any]

FLAT: Document = {
    "wandb_project": "sparse-toys",
    "wandb_run_name": None,
    "wandb_run_name_prefix": "",
    "seed": 7,
    "n_mask_samples": 2,
    "ci_fn_type": "shared_mlp",
    "ci_fn_hidden_dims": [24],
    "sigmoid_type": "hard",
    "sampling": "binomial",
    "module_info": [
        {"module_pattern": "linear1", "C": 14},
        {"module_pattern": "linear2", "C": 14},
        {"module_pattern": "hidden_layers.*", "C": 9},
    ],
    "identity_module_info": None,
    "use_delta_component": False,
    "loss_metric_configs": [
        {"classname": "ImportanceMinimalityLoss", "coeff": "2e-3", "pnorm": 0.9, "beta": 0.25, "eps": 1e-10},
        {"classname": "StochasticReconSubsetLoss", "coeff": 0.75, "routing": {"type": "static_probability", "p": 0.4}},
        {
            "classname": "PersistentPGDReconLoss",
            "coeff": 0.25,
            "optimizer": {"type": "adam", "lr": 0.02, "beta1": 0.4, "beta2": 0.95},
            "scope": {"type": "batch_invariant", "n_masks": 16},
        },
        {"classname": "FaithfulnessLoss", "coeff": 3},
    ],
    "output_loss_type": "mse",
    "batch_size": 512,
    "steps": 3000,
    "lr_schedule": {"start_val": "4e-3", "fn_type": "linear", "warmup_pct": 0.05, "final_val_frac": 0.2},
    "grad_clip_norm_components": 0.5,
    "grad_clip_norm_ci_fns": None,
    "gradient_accumulation_steps": 1,
    "faithfulness_warmup_steps": 30,
    "faithfulness_warmup_lr": 0.004,
    "faithfulness_warmup_weight_decay": 0.2,
    "train_log_freq": 25,
    "eval_freq": 250,
    "slow_eval_freq": 750,
    "slow_eval_on_first_step": False,
    "n_eval_steps": 4,
    "save_freq": 1500,
    "print_freq": 10,
    "image_freq": 333,
    "image_on_first_step": True,
    "ci_alive_threshold": 0.15,
    "eval_metric_configs": [
        {"classname": "CI_L0", "groups": {"ends": ["linear*"]}},
        {"classname": "ComponentActivationDensity", "ci_alive_threshold": 0.3},
        {"classname": "CIHistograms", "n_batches_accum": 3},
        {
            "classname": "PGDReconLoss",
            "coeff": None,
            "init": "zeroes",
            "step_size": 0.2,
            "n_steps": 5,
            "mask_scope": "unique_per_datapoint",
        },
    ],
    "pretrained_model_class": "lab.toys.models.TMSModel",
    "pretrained_model_path": "wandb:some-team/toys/runs/ab12cd34",
    "task_config": {
        "task_name": "tms",
        "feature_probability": 0.08,
        "data_generation_type": "exactly_one_active",
    },
}

SCALARS: Document = {
    "faithfulness_coeff": 20,
    "ci_recon_coeff": 0.5,
    "ci_recon_layerwise_coeff": None,
    "importance_minimality_coeff": "3e-4",
    "pnorm": 0.8,
    "stochastic_recon_coeff": 1.5,
    "stochastic_recon_layerwise_coeff": 2,
}

FLAT_LM: Document = {
    "n_mask_samples": 1,
    "ci_config": {
        "mode": "global",
        "fn_type": "global_shared_transformer",
        "hidden_dims": None,
        "block_groups": None,
        "simple_transformer_ci_cfg": {"d_model": 64, "n_blocks": 2, "attn_config": {"n_heads": 4, "max_len": 256}},
    },
    "module_info": [{"module_pattern": "h.*.mlp.c_fc", "C": 300}],
    "loss_metric_configs": [{"classname": "StochasticReconLoss", "coeff": 1}],
    "output_loss_type": "kl",
    "batch_size": 32,
    "steps": 1000,
    "lr_schedule": {"start_val": 1e-3},
    "train_log_freq": 50,
    "pretrained_model_class": "lab.models.small.SmallLM",
    "pretrained_model_name": "wandb:some-team/words/run-9",
    "pretrained_model_output_attr": "idx_2",
    "tokenizer_name": "some-team/words-tokenizer",
    "task_config": {
        "task_name": "lm",
        "dataset_name": "some-team/words",
        "max_seq_len": 128,
        "train_data_split": "most",
        "eval_data_split": "rest",
        "streaming": True,
    },
}

KNOTS: Document = {
    "run_name": "small-knots",
    "decomposition": {
        "sites": {
            "kind": "explicit",
            "sites": [{"name": "linear1", "C": 11}, {"name": "linear2", "C": 11}],
            "initialization": "svd",
        },
        "ci": {"type": "layerwise_mlp", "hidden_dims": [20, 10]},
    },
    "pd": {
        "seed": 5,
        "batch_size": 256,
        "steps": 4000,
        "loss_metrics": [
            {
                "type": "ImportanceMinimalityLoss",
                "coeff": 5e-4,
                "normalize_at_one": False,
                "frequency": {"coeff": 2e-4, "reference_datapoint_count": 4096},
                "gamma": {
                    "max_val": 2.0,
                    "points": [
                        {"at": 0.0, "frac": 1.0},
                        {"at": 0.25, "frac": 1.0},
                        {"at": 0.75, "frac": 0.125},
                        {"at": 1.0, "frac": 0.125},
                    ],
                },
            },
            {
                "type": "MergedStochasticSubsetPPGDReconLoss",
                "coeff": 1.0,
                "adv_fraction": 0.3,
                "n_warmup_steps": 1,
                "routing": {"type": "uniform_k_subset"},
                "source_shape": "bc",
                "optimizer": {
                    "type": "adam",
                    "beta1": 0.1,
                    "lr_schedule": {
                        "max_val": "2e-2",
                        "points": [{"at": 0, "frac": 0}, {"at": 0.1, "frac": 1}, {"at": 1, "frac": 1}],
                    },
                },
            },
            {"type": "FaithfulnessLoss", "coeff": 2.0},
        ],
        "components_optimizer": {
            "type": "muon",
            "grad_clip_norm": 1.5,
            "lr_schedule": {
                "max_val": 0.003,
                "points": [
                    {"at": 0.0, "frac": 0.0},
                    {"at": 0.05, "frac": 1.0},
                    {"at": 1.0, "frac": 0.1, "interp": "cosine"},
                ],
            },
        },
        "ci_fn_optimizer": {
            "weight_decay": 0.1,
            "betas": [0.8, 0.99],
            "lr_schedule": {"max_val": 0.002, "points": [{"at": 0, "frac": 1}, {"at": 1, "frac": 0.5}]},
        },
    },
    "cadence": {
        "checkpointing": {"kind": "periodic", "save_every": 800, "retention": {"kind": "keep_last", "n": 3}},
    },
    "runtime": {"remat_ci_fn": False, "mesh": {"replicate": 2, "fsdp": 4, "tp": 1}},
    "target": {"n_features": 6, "n_hidden": 3, "pretrain": {"steps": 500, "batch_size": 128, "lr": 0.01}},
    "data": {"feature_probability": 0.1},
    "eval": {
        "batch_size": 256,
        "n_steps": 2,
        "every": 400,
        "slow_every": 800,
        "metrics": [{"type": "PGDReconLoss", "init": "ones", "source_shape": "c", "n_steps": 8, "step_size": 0.05}],
    },
    "wandb": {"project": "small", "entity": None},
}
