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
from vpd.targets.induction import Induction, init_induction, pretrain_induction
from vpd.targets.resid_mlp import ResidMLP, init_resid_mlp, pretrain_resid_mlp
from vpd.targets.tms import TMS, init_tms, pretrain_tms

__all__ = [
    "TMS",
    "Induction",
    "ResidMLP",
    "Seam",
    "Target",
    "clean_forward",
    "frozen_weights",
    "init_induction",
    "init_resid_mlp",
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
