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
from vpd.targets.tms import TMS, init_tms, pretrain_tms

__all__ = [
    "TMS",
    "Seam",
    "Target",
    "clean_forward",
    "frozen_weights",
    "init_tms",
    "masked_forward",
    "masked_site_outputs",
    "pretrain_tms",
    "recorded_forward",
]
