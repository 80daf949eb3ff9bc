"""Targets: frozen networks, each one forward pass with a seam."""

from vpd.targets.base import (
    Seam,
    Target,
    clean_forward,
    frozen_weights,
    masked_forward,
    masked_site_outputs,
    recorded_forward,
)
from vpd.targets.divergence import kl, squared_error
from vpd.targets.gpt2 import GPT2, init_gpt2
from vpd.targets.induction import Induction, init_induction, pretrain_induction
from vpd.targets.language_model import LanguageModel
from vpd.targets.llama import Llama, init_llama
from vpd.targets.resid_mlp import ResidMLP, init_resid_mlp, pretrain_resid_mlp
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP, init_simple_mlp_lm
from vpd.targets.tms import TMS, init_tms, pretrain_tms

__all__ = [
    "GPT2",
    "TMS",
    "Induction",
    "LanguageModel",
    "Llama",
    "LlamaSimpleMLP",
    "ResidMLP",
    "Seam",
    "Target",
    "clean_forward",
    "frozen_weights",
    "init_gpt2",
    "init_induction",
    "init_llama",
    "init_resid_mlp",
    "init_simple_mlp_lm",
    "init_tms",
    "kl",
    "masked_forward",
    "masked_site_outputs",
    "pretrain_induction",
    "pretrain_resid_mlp",
    "pretrain_tms",
    "recorded_forward",
    "squared_error",
]
