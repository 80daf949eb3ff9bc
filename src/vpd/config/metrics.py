"""What an evaluation computes; any loss may stand here too, without its coefficient."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from vpd.config.block import Block, problem
from vpd.config.losses import Loss, Term
from vpd.config.sources import MaskScope
from vpd.config.values import Count, CountOrZero, Fraction, Glob, Identifier, Positive, Text, Words, is_block

Globs = Annotated[tuple[Glob, ...], Words("a list of site globs", ["linear1"])]
NonEmptyGlobs = Annotated[tuple[Glob, ...], Field(min_length=1), Words("a non-empty list of site globs", ["*"])]


class Metric(Block):
    """What every metric has."""

    name: Identifier | None = None
    """Key of the metric in logs; needed where a type occurs twice."""

    @property
    def key(self) -> str:
        """The name, or the type where there is no name: unique in its list."""
        return self.name or type(self).__name__


class CEandKLLosses(Metric):
    """Cross-entropy and KL of a language model under several maskings."""

    type: Literal["CEandKLLosses"]
    """Selects this metric."""
    rounding_threshold: Fraction
    """Importances above it are rounded to 1, others to 0, in the rounded masking."""


class CI_L0(Metric):
    """Mean number of important subcomponents per position, per site and per group of sites."""

    type: Literal["CI_L0"]
    """Selects this metric."""
    groups: Annotated[dict[Identifier, NonEmptyGlobs] | None, Words("a block of name: [globs]", {"total": ["*"]})] = (
        None
    )
    """Named groups of site globs, each reported as one sum."""
    ci_alive_threshold: Fraction = 0.0
    """An importance above it counts."""
    also_at: Annotated[
        tuple[Fraction, ...] | None, Field(min_length=1), Words("a non-empty list of numbers from 0 to 1", [0.1, 0.5])
    ] = None
    """More thresholds, reported under `<key>@<threshold>` beside the first."""

    @model_validator(mode="after")
    def _each_threshold_once(self) -> Self:
        every = (self.ci_alive_threshold, *(self.also_at or ()))
        for threshold in every:
            if every.count(threshold) > 1:
                raise problem("also_at", f"{threshold:g} is a threshold of this metric twice", "write each one once")
        return self


class CIHistograms(Metric):
    """Histograms of causal importances."""

    type: Literal["CIHistograms"]
    """Selects this metric."""
    n_batches_accum: Annotated[Count, Field(examples=[5])]
    """Evaluation batches that are gathered."""


class ComponentActivationDensity(Metric):
    """How often each subcomponent is important."""

    type: Literal["ComponentActivationDensity"]
    """Selects this metric."""
    ci_alive_threshold: Fraction = 0.0
    """An importance above it counts."""


class CIMeanPerComponent(Metric):
    """Mean importance of each subcomponent, sorted: the alive spectrum."""

    type: Literal["CIMeanPerComponent"]
    """Selects this metric."""


class CIHiddenActsReconLoss(Metric):
    """Squared error of every site's output with the importances as masks."""

    type: Literal["CIHiddenActsReconLoss"]
    """Selects this metric."""


class PGDReconProbe(Metric):
    """What fresh adversaries of several budgets reach: per batch the worst of their restarts, and the mean."""

    type: Literal["PGDReconProbe"]
    """Selects this metric."""
    budgets: Annotated[
        tuple[CountOrZero, ...], Field(min_length=1), Words("a non-empty list of integers >= 0", [20, 100])
    ]
    """Numbers of ascents, each reported under `<key>_<ascents>x<step_size>`."""
    step_size: Annotated[Positive, Field(examples=[0.1])]
    """Size of each sign step; sources are clipped to [0, 1] after it."""
    restarts: Count = 1
    """Random starts of each budget."""
    mask_scope: MaskScope
    """Shape of the sources: c, sc, bc or bsc, or an older name."""

    @model_validator(mode="after")
    def _each_budget_once(self) -> Self:
        for budget in self.budgets:
            if self.budgets.count(budget) > 1:
                raise problem("budgets", f"{budget} is there twice", "write each number of ascents once")
        return self


class FaithfulnessPerSite(Metric):
    """What the subcomponents of each matrix leave over: mean squared entry of the weight delta, and ‖Δ‖ / ‖W‖."""

    type: Literal["FaithfulnessPerSite"]
    """Selects this metric."""


class EffectiveRank(Metric):
    """Exponential of the entropy of normalised singular values, of each matrix and of the sum of its subcomponents.

    A slow metric: it takes the singular values of every decomposed matrix.
    """

    type: Literal["EffectiveRank"]
    """Selects this metric."""


class AttnPatterns(Metric):
    """Where a target's attention projections are."""

    n_heads: Annotated[Count, Field(examples=[4])]
    """Attention heads of the target."""
    q_proj_path: Text | None = None
    """Glob of the query projections; with `k_proj_path`."""
    k_proj_path: Text | None = None
    """Glob of the key projections; with `q_proj_path`."""
    c_attn_path: Text | None = None
    """Glob of the fused projections, instead of the other two."""

    @model_validator(mode="after")
    def _one_way_to_find_attention(self) -> Self:
        separate = (self.q_proj_path is not None, self.k_proj_path is not None)
        if (self.c_attn_path is None and all(separate)) or (self.c_attn_path is not None and not any(separate)):
            return self
        raise problem(
            "q_proj_path",
            "an attention-pattern metric needs q_proj_path and k_proj_path together, or c_attn_path alone",
            "write one of these two",
        )


class CIMaskedAttnPatternsReconLoss(AttnPatterns):
    """KL of attention patterns with the importances as masks."""

    type: Literal["CIMaskedAttnPatternsReconLoss"]
    """Selects this metric."""


class StochasticAttnPatternsReconLoss(AttnPatterns):
    """KL of attention patterns with random masks."""

    type: Literal["StochasticAttnPatternsReconLoss"]
    """Selects this metric."""


class IdentityPattern(Block):
    """Sites expected to have one subcomponent per feature."""

    layer_pattern: Glob
    """Glob of the sites."""
    n_features: Annotated[Count, Field(examples=[5])]
    """Number of features."""


class DensePattern(Block):
    """Sites expected to have k subcomponents, each important for many features."""

    layer_pattern: Glob
    """Glob of the sites."""
    k: Annotated[Count, Field(examples=[2])]
    """Number of dense subcomponents."""


class IdentityCIError(Metric):
    """Errors of the single-feature importances against an expected pattern."""

    type: Literal["IdentityCIError"]
    """Selects this metric."""
    identity_ci: (
        Annotated[
            tuple[IdentityPattern, ...],
            Words("a list of blocks", [{"layer_pattern": "linear1", "n_features": 5}]),
        ]
        | None
    ) = None
    """Sites that should show the identity."""
    dense_ci: (
        Annotated[
            tuple[DensePattern, ...],
            Words("a list of blocks", [{"layer_pattern": "hidden_layers.0", "k": 2}]),
        ]
        | None
    ) = None
    """Sites that should show k dense columns."""

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if not self.identity_ci and not self.dense_ci:
            raise problem(
                "identity_ci",
                "IdentityCIError without identity_ci and dense_ci has nothing to compare with",
                "write for example identity_ci: [{layer_pattern: linear1, n_features: 5}], or remove the metric",
            )
        return self


class PermutedPlots(Metric):
    """Sites by the pattern their columns are ordered to show."""

    identity_patterns: Globs | None = None
    """Sites ordered to show the identity."""
    dense_patterns: Globs | None = None
    """Sites ordered by density."""


class PermutedCIPlots(PermutedPlots):
    """Figures of the single-feature importances, columns in the best order."""

    type: Literal["PermutedCIPlots"]
    """Selects this metric."""


class UVPlots(PermutedPlots):
    """Figures of V and U, subcomponents in the best order."""

    type: Literal["UVPlots"]
    """Selects this metric."""


OwnMetric = (
    CEandKLLosses
    | CI_L0
    | CIHistograms
    | ComponentActivationDensity
    | CIMeanPerComponent
    | CIHiddenActsReconLoss
    | PGDReconProbe
    | FaithfulnessPerSite
    | EffectiveRank
    | CIMaskedAttnPatternsReconLoss
    | StochasticAttnPatternsReconLoss
    | IdentityCIError
    | PermutedCIPlots
    | UVPlots
)
AnyMetric = OwnMetric | Loss
LOSS_TYPES: frozenset[str] = frozenset(loss.__name__ for loss in get_args(Loss))
METRIC_TYPES: frozenset[str] = frozenset(metric.__name__ for metric in get_args(OwnMetric))


def _without_coefficient(given: object) -> object:
    """A loss that is only evaluated has weight 1, whatever the file says."""
    if isinstance(given, Term):
        return given.model_copy(update={"coeff": 1.0})
    if not is_block(given):
        return given
    bare = {key: value for key, value in given.items() if key != "coeff"}
    kind = bare.get("type")
    return {**bare, "coeff": 1.0} if isinstance(kind, str) and kind in LOSS_TYPES else bare


EvalMetric = Annotated[AnyMetric, Field(discriminator="type"), BeforeValidator(_without_coefficient)]
