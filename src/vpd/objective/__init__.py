"""What is optimised: faithfulness, minimality, and the grid of recon terms with their adversaries."""

from vpd.objective.adversary import (
    AdamAscent,
    AdversaryState,
    SignAscent,
    ascend,
    effective_sources,
    init_adversary,
)
from vpd.objective.faithfulness import faithfulness_loss
from vpd.objective.minimality import ImportanceMinimality, SmoothL0, anneal
from vpd.objective.recon import FreshPGD, Persistent, ReconTerm, Scene, recon_loss
from vpd.objective.schedule import Schedule
from vpd.objective.total import Faithfulness, Minimality, Term, Weights, total_loss, warm_up_adversaries

__all__ = [
    "AdamAscent",
    "AdversaryState",
    "Faithfulness",
    "FreshPGD",
    "ImportanceMinimality",
    "Minimality",
    "Persistent",
    "ReconTerm",
    "Scene",
    "Schedule",
    "SignAscent",
    "SmoothL0",
    "Term",
    "Weights",
    "anneal",
    "ascend",
    "effective_sources",
    "faithfulness_loss",
    "init_adversary",
    "recon_loss",
    "total_loss",
    "warm_up_adversaries",
]
