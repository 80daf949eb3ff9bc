"""Behaviour pruning: the subset of subcomponents that one prompt needs (method.md §11)."""

from vpd.analysis.pruning.optimise import Effort
from vpd.analysis.pruning.prune import EXPLAINED, SUBSET, Pruning, Subset, prune
from vpd.analysis.pruning.store import pruned_prompt, save_pruning

__all__ = ["EXPLAINED", "SUBSET", "Effort", "Pruning", "Subset", "prune", "pruned_prompt", "save_pruning"]
