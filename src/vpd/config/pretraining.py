"""The pretraining file: how a target language model is trained."""

from typing import Annotated

from pydantic import Field

from vpd.config.block import Block
from vpd.config.run import Cadence, Runtime
from vpd.config.schedule import Betas, LRSchedule
from vpd.config.targets import AnyTarget, TokenData
from vpd.config.values import Count, NonNegative, Positive, Seed


class PretrainingOptimizer(Block):
    """AdamW for pretraining."""

    lr_schedule: LRSchedule
    """Learning rate over the run."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and second moments."""
    grad_clip_norm: Positive | None = None
    """Global norm to which the gradient is clipped; null does not clip."""


class PretrainingEval(Block):
    """How often the loss on held-out text is measured."""

    batch_size: Annotated[Count, Field(examples=[64])]
    """Evaluation batch size."""
    n_steps: Annotated[Count, Field(examples=[20])]
    """Batches per evaluation."""
    every: Annotated[Count, Field(examples=[1000])]
    """Updates between evaluations."""


class PretrainingConfig(Block):
    """A pretraining file."""

    target: AnyTarget
    """The network to train."""
    data: TokenData
    """The text to train it on."""
    optimizer: PretrainingOptimizer
    """How it is updated."""
    steps: Annotated[Count, Field(examples=[10000])]
    """Number of updates."""
    batch_size: Annotated[Count, Field(examples=[64])]
    """Global batch size."""
    cadence: Cadence
    """How often training reports and saves."""
    eval: PretrainingEval | None = None
    """Evaluation; null evaluates nothing."""
    runtime: Runtime = Runtime()
    """Where and how the run is computed."""
    seed: Seed = 0
    """Seed of every draw of the run."""
