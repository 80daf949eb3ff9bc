"""Learning-rate schedules and optimizers as a run file describes them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vpd.config.block import Block, problem
from vpd.config.values import Count, Fraction, HalfOpenFraction, NonNegative, Positive, Words


class LRSchedule(Block):
    """Linear warm-up from 0, then constant, linear or cosine."""

    start_val: Annotated[NonNegative, Field(examples=[0.001])]
    """Learning rate right after warm-up."""
    warmup_pct: Fraction = 0.0
    """Fraction of all steps, in [0, 1], spent warming up from 0."""
    final_val_frac: NonNegative = 1.0
    """The last step's learning rate as a fraction of `start_val`; must be 1 when constant."""
    fn_type: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the schedule after warm-up."""

    @model_validator(mode="after")
    def _constant_stays(self) -> Self:
        if self.fn_type == "constant" and self.final_val_frac != 1.0:
            raise problem(
                "final_val_frac",
                f"a constant schedule ends where it started, so {self.final_val_frac:g} has no effect",
                "write final_val_frac: 1.0, or fn_type: cosine or linear",
            )
        return self

    def warmup_steps(self, steps: int) -> int:
        """Number of warm-up steps in a run of `steps`."""
        return int(steps * self.warmup_pct)


Betas = Annotated[
    tuple[HalfOpenFraction, HalfOpenFraction],
    Words("a list of two numbers in [0, 1)", [0.9, 0.999]),
]


class Optimizer(Block):
    """An optimizer of one parameter group."""

    type: Literal["adamw", "muon"] = "adamw"
    """Update rule; muon orthogonalises the momentum of matrices (stacked ones each by itself), adamw does the rest."""
    lr_schedule: LRSchedule
    """Learning rate over the run."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and second moments; under muon the first is the momentum of matrices, which have no second."""
    grad_clip_norm: Positive | None = None
    """Global norm to which the group's gradient is clipped; null does not clip."""
    ns_steps: Count = 5
    """Newton-Schulz iterations of muon."""

    @model_validator(mode="after")
    def _ns_steps_need_muon(self) -> Self:
        if self.type != "muon" and self.ns_steps != 5:
            raise problem(
                "ns_steps",
                f"{self.ns_steps} has no effect with type: {self.type}",
                "remove the key, or write type: muon",
            )
        return self


class AdamSources(Block):
    """Adam ascent of persistent sources, eps after the square root."""

    type: Literal["adam"]
    """Ascent rule."""
    beta1: HalfOpenFraction = 0.9
    """Decay of the first moment."""
    beta2: HalfOpenFraction = 0.999
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    lr_schedule: LRSchedule
    """Learning rate of the sources over the run, read once per training step."""


class SignSources(Block):
    """Ascent by the sign of the gradient."""

    inactive_keys = frozenset({"beta1", "beta2", "eps"})

    type: Literal["sign"]
    """Ascent rule."""
    lr_schedule: LRSchedule
    """Step of the sources over the run, read once per training step."""


SourceOptimizer = Annotated[AdamSources | SignSources, Field(discriminator="type")]
