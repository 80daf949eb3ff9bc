"""Causal importance: networks that predict it, and the squashings of their output."""

from vpd.importance.ci import CausalImportances, causal_importances
from vpd.importance.mlp import CIFunction, GlobalMLP, LayerwiseMLP, init_global_mlp, init_layerwise_mlp
from vpd.importance.squash import SQUASHINGS, Squashing, squash_pair
from vpd.importance.transformer import TransformerCI, init_transformer

__all__ = [
    "SQUASHINGS",
    "CIFunction",
    "CausalImportances",
    "GlobalMLP",
    "LayerwiseMLP",
    "Squashing",
    "TransformerCI",
    "causal_importances",
    "init_global_mlp",
    "init_layerwise_mlp",
    "init_transformer",
    "squash_pair",
]
