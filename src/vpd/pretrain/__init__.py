"""Trains a language model from a pretraining file into the layout that a decomposition reads."""

from vpd.pretrain.run import Outcome, pretrain, run_path

__all__ = ["Outcome", "pretrain", "run_path"]
