"""The losses a run can train on; each class is named like the `type` that selects it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vpd.config.block import Block, problem
from vpd.config.schedule import SourceOptimizer
from vpd.config.sources import AnyScope, MaskScope, Routing, UniformKSubset
from vpd.config.values import (
    Count,
    CountOrZero,
    Flag,
    Fraction,
    Glob,
    HalfOpenFraction,
    Identifier,
    NonNegative,
    Positive,
    Words,
)


class HiddenActsRider(Block):
    """A second loss on a recon term's own forwards: mean squared error of the outputs of its live sites.

    The term is its divergence plus `coeff` times the rider, for the total and for its adversary.
    """

    coeff: Annotated[NonNegative, Field(examples=[0.1])]
    """Weight beside the divergence, inside the term: the total has the term's coeff * (divergence + this * rider)."""
    sites: Annotated[
        tuple[Glob, ...], Field(min_length=1), Words("a non-empty list of site globs", ["h.*.mlp.down_proj"])
    ]
    """Globs of the sites whose outputs, bias included, are compared with the clean ones where they are live."""


class Term(Block):
    """What every loss has."""

    coeff: Annotated[NonNegative, Field(examples=[1.0])]
    """Weight of the term in the total."""
    name: Identifier | None = None
    """Key of the term in logs; needed where a type occurs twice."""

    @property
    def key(self) -> str:
        """The name, or the type where there is no name: unique in its list."""
        return self.name or type(self).__name__


class ReconTerm(Term):
    """A masked forward compared with the clean output of the whole model."""

    hidden_acts_reconstruction: HiddenActsRider | None = None
    """Hidden-activation rider on this term, logged beside it as `<term>/hidden_acts`, unweighted."""


class Routed(Block):
    """Subset terms: which positions and sites are masked."""

    routing: Routing = UniformKSubset()
    """How positions and sites are drawn."""


class FreshAdversary(ReconTerm):
    """Sign-PGD from a fresh start at every step."""

    init: Literal["random", "ones", "zeroes"]
    """Where the ascent starts."""
    step_size: Annotated[Positive, Field(examples=[0.1])]
    """Size of each sign step; sources are clipped to [0, 1] after it."""
    n_steps: Annotated[CountOrZero, Field(examples=[20])]
    """Number of ascents."""
    mask_scope: MaskScope
    """Shape of the sources: c, sc, bc or bsc, or an older name."""


class PersistentAdversary(ReconTerm):
    """Sources that live in the training state and ascend at every step."""

    optimizer: SourceOptimizer
    """How the sources ascend."""
    scope: AnyScope
    """Shape of the sources."""
    n_warmup_steps: CountOrZero = 0
    """Ascents before the one that shares the main backward."""
    start_frac: HalfOpenFraction = 0.0
    """Fraction of training before which the term rests."""
    n_samples: Count = 1
    """Forwards per step, which differ in routing."""
    use_sigmoid_parameterization: Flag = False
    """Whether sources are a sigmoid of what is stored, instead of being clipped."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if self.coeff == 0:
            raise problem(
                "coeff",
                "a persistent adversary takes its gradient through the coefficient, so 0 can't work",
                "write a coeff > 0, or remove the term",
            )
        return self


class FaithfulnessLoss(Term):
    """Squared weight deltas, summed over sites, per weight."""

    type: Literal["FaithfulnessLoss"]
    """Selects this loss."""


class UnmaskedReconLoss(ReconTerm):
    """All component masks 1, no delta."""

    type: Literal["UnmaskedReconLoss"]
    """Selects this loss."""


class CIMaskedReconLoss(ReconTerm):
    """Masks are the causal importances, all sites at once."""

    type: Literal["CIMaskedReconLoss"]
    """Selects this loss."""


class CIMaskedReconLayerwiseLoss(ReconTerm):
    """Masks are the causal importances, one site at a time."""

    type: Literal["CIMaskedReconLayerwiseLoss"]
    """Selects this loss."""


class CIMaskedReconSubsetLoss(ReconTerm, Routed):
    """Masks are the causal importances, on sampled sites per position."""

    type: Literal["CIMaskedReconSubsetLoss"]
    """Selects this loss."""


class StochasticReconLoss(ReconTerm):
    """Random masks, all sites at once."""

    type: Literal["StochasticReconLoss"]
    """Selects this loss."""


class StochasticReconLayerwiseLoss(ReconTerm):
    """Random masks, one site at a time."""

    type: Literal["StochasticReconLayerwiseLoss"]
    """Selects this loss."""


class StochasticReconSubsetLoss(ReconTerm, Routed):
    """Random masks, on sampled sites per position."""

    type: Literal["StochasticReconSubsetLoss"]
    """Selects this loss."""


class ChunkwiseSubsetReconLoss(ReconTerm, Routed):
    """Random masks, one group of consecutive sites at a time, on sampled sites per position."""

    type: Literal["ChunkwiseSubsetReconLoss"]
    """Selects this loss."""
    sites_per_chunk: Annotated[Count, Field(examples=[6])]
    """Consecutive sites that are live together."""
    n_samples: Count = 1
    """Forwards per group."""


class StochasticHiddenActsReconLoss(Term):
    """Random masks; squared error of every site's output."""

    type: Literal["StochasticHiddenActsReconLoss"]
    """Selects this loss."""


class PGDReconLoss(FreshAdversary):
    """A fresh adversary, all sites at once."""

    type: Literal["PGDReconLoss"]
    """Selects this loss."""


class PGDReconLayerwiseLoss(FreshAdversary):
    """A fresh adversary, one site at a time."""

    type: Literal["PGDReconLayerwiseLoss"]
    """Selects this loss."""


class PGDReconSubsetLoss(FreshAdversary, Routed):
    """A fresh adversary, on sampled sites per position."""

    type: Literal["PGDReconSubsetLoss"]
    """Selects this loss."""


class PersistentPGDReconLoss(PersistentAdversary):
    """A persistent adversary, all sites at once."""

    type: Literal["PersistentPGDReconLoss"]
    """Selects this loss."""


class PersistentPGDReconSubsetLoss(PersistentAdversary, Routed):
    """A persistent adversary, on sampled sites per position."""

    type: Literal["PersistentPGDReconSubsetLoss"]
    """Selects this loss."""


class MergedStochasticPersistentReconLoss(PersistentAdversary, Routed):
    """One forward in which each batch element is either adversarial or stochastic, at all its positions and sites.

    Elements, stochastic sources and routing are drawn afresh for each of `n_samples` forwards. Warm-up ascents see all
    elements adversarial; the last has the gradient of the term, to which the adversarial elements alone contribute.
    """

    type: Literal["MergedStochasticPersistentReconLoss"]
    """Selects this loss."""
    adv_fraction: Annotated[Fraction, Field(examples=[0.5])]
    """Probability that a batch element is adversarial; > 0, and 1 is PersistentPGDReconSubsetLoss."""

    @model_validator(mode="after")
    def _uses_its_sources(self) -> Self:
        if self.adv_fraction == 0:
            raise problem(
                "adv_fraction",
                "0 makes no batch element adversarial, so the persistent sources would have no effect",
                "write an adv_fraction > 0, or StochasticReconSubsetLoss",
            )
        return self


class ImportanceMinimalityLoss(Term):
    """Sparsity of causal importances: a p-norm, with a log penalty on frequency."""

    type: Literal["ImportanceMinimalityLoss"]
    """Selects this loss."""
    pnorm: Annotated[Positive, Field(examples=[2.0])]
    """Power p at the start."""
    beta: Annotated[NonNegative, Field(examples=[0.5])]
    """Weight of the log penalty on how often a subcomponent is important."""
    p_anneal_start_frac: Fraction = 1.0
    """Fraction of training at which p starts to move; 1 never anneals."""
    p_anneal_final_p: Positive | None = None
    """Power p at the end of annealing; null never anneals."""
    p_anneal_end_frac: Fraction = 1.0
    """Fraction of training at which p arrives."""
    eps: Positive = 1e-12
    """Added to the importance before the power."""

    @model_validator(mode="after")
    def _anneals_or_not(self) -> Self:
        _check_annealing(
            "p_anneal_final_p",
            self.p_anneal_final_p,
            ("p_anneal_start_frac", self.p_anneal_start_frac),
            ("p_anneal_end_frac", self.p_anneal_end_frac),
        )
        return self


class Frequency(Block):
    """A frequency penalty with a weight of its own."""

    coeff: NonNegative
    """Weight of the penalty."""
    reference_datapoint_count: Annotated[Positive, Field(examples=[32768])]
    """Number of positions at which the penalty is calibrated."""


class SmoothL0ImportanceMinimalityLoss(Term):
    """Sparsity of causal importances: a smooth count, ci² / (ci² + γ²)."""

    type: Literal["SmoothL0ImportanceMinimalityLoss"]
    """Selects this loss."""
    gamma: Annotated[Positive, Field(examples=[1.0])]
    """Width γ at the start."""
    beta: Annotated[NonNegative, Field(examples=[0.5])]
    """Weight of the log penalty on how often a subcomponent is important."""
    gamma_anneal_start_frac: Fraction = 1.0
    """Fraction of training at which γ starts to move; 1 never anneals."""
    gamma_anneal_final_gamma: Positive | None = None
    """Width γ at the end of annealing; null never anneals."""
    gamma_anneal_end_frac: Fraction = 1.0
    """Fraction of training at which γ arrives."""
    frequency: Frequency | None = None
    """A separate frequency penalty."""

    @model_validator(mode="after")
    def _anneals_or_not(self) -> Self:
        _check_annealing(
            "gamma_anneal_final_gamma",
            self.gamma_anneal_final_gamma,
            ("gamma_anneal_start_frac", self.gamma_anneal_start_frac),
            ("gamma_anneal_end_frac", self.gamma_anneal_end_frac),
        )
        return self


def _check_annealing(final_key: str, final: float | None, start: tuple[str, float], end: tuple[str, float]) -> None:
    """Refuse annealing that has no effect or goes backwards; keys come with their values."""
    start_key, start_frac = start
    end_key, end_frac = end
    if final is None:
        for key, value in (start, end):
            if value != 1.0:
                raise problem(key, f"{value:g} has no effect without {final_key}", f"write {final_key}, or {key}: 1.0")
    elif start_frac >= 1:
        raise problem(
            final_key,
            f"{final:g} has no effect while {start_key} is 1, which never anneals",
            f"write {start_key}: 0.0, or {final_key}: null",
        )
    elif end_frac <= start_frac:
        raise problem(
            end_key,
            f"annealing must end after it starts, but {end_frac:g} <= {start_key} {start_frac:g}",
            f"write {end_key}: 1.0",
        )


Loss = (
    FaithfulnessLoss
    | UnmaskedReconLoss
    | CIMaskedReconLoss
    | CIMaskedReconLayerwiseLoss
    | CIMaskedReconSubsetLoss
    | StochasticReconLoss
    | StochasticReconLayerwiseLoss
    | StochasticReconSubsetLoss
    | ChunkwiseSubsetReconLoss
    | StochasticHiddenActsReconLoss
    | PGDReconLoss
    | PGDReconLayerwiseLoss
    | PGDReconSubsetLoss
    | PersistentPGDReconLoss
    | PersistentPGDReconSubsetLoss
    | MergedStochasticPersistentReconLoss
    | ImportanceMinimalityLoss
    | SmoothL0ImportanceMinimalityLoss
)
AnyLoss = Annotated[Loss, Field(discriminator="type")]
