"""What an edit changes, on target and off it: sums a sequence, and means with bootstrap intervals over sequences."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from vpd.analysis.editing.edited import Added, Edited, edited_forward
from vpd.analysis.editing.sets import Examples
from vpd.decomposition import Activation, dense
from vpd.errors import RunError
from vpd.evaluation.intervals import Mean, bootstrap
from vpd.progress import bar_unless, training_meter
from vpd.targets import TMS, Induction, LanguageModel, ResidMLP, Target, recorded_forward
from vpd.targets.base import Batch
from vpd.targets.divergence import cross_entropy
from vpd.training.state import Decomposition
from vpd.training.step import Problem

SETS = ("on", "off")
# In the order in which they are told; the first that there is, is the divergence.
DIVERGENCES = ("kl", "squared_error", "divergence")
MEASURES = (
    *DIVERGENCES,
    "changed",
    "ce_before",
    "ce_after",
    "ce_change",
    "right_before",
    "right_after",
)


class Sums(eqx.Module):
    """Sums over the positions of a set, one for each sequence of a batch, ``{measure: [B]}``.

    Attributes:
        positions: how many.
        values: by measure.
    """

    positions: Float[Array, " B"]
    values: dict[str, Float[Array, " B"]]


@dataclass(frozen=True)
class Estimate:
    """A mean over positions and its 95 % interval over sequences; None where fewer than three sequences have any."""

    value: float
    low: float | None
    high: float | None

    def as_record(self) -> dict[str, object]:
        """As plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class SetEffect:
    """An edit's effect on one set of positions.

    Attributes:
        sequences: how many have a position of the set.
        positions: of the set.
        measures: ``kl`` from the unedited network in nats (``squared_error`` of toys on features, ``divergence`` of
            traced functions). Of tokens also ``changed``, the part of positions with another likeliest token;
            ``ce_before``, ``ce_after`` and ``ce_change``, cross-entropy of the next token in nats; ``right_before`` and
            ``right_after``, the part at which it is the likeliest.
    """

    sequences: int
    positions: int
    measures: Mapping[str, Estimate]

    def as_record(self) -> dict[str, object]:
        """As plain values."""
        measures = {name: estimate.as_record() for name, estimate in self.measures.items()}
        return {"sequences": self.sequences, "positions": self.positions, "measures": measures}


@dataclass
class Totals:
    """Sums of one set over batches, a sequence at a time."""

    positions: list[np.ndarray] = field(default_factory=list)
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Add a batch."""
        self.positions.append(np.asarray(sums.positions, np.float64))
        for name, value in sums.values.items():
            self.values.setdefault(name, []).append(np.asarray(value, np.float64))

    def effect(self, seed: int, what: str) -> SetEffect:
        """Means and intervals.

        Raises:
            RunError: a set without any position.
        """
        positions = np.concatenate(self.positions) if self.positions else np.zeros(0)
        has = positions > 0
        if not has.any():
            raise RunError(
                f"the set of positions {what} is empty in the data that was looked at; give more --batches, "
                "or another set"
            )
        values = {name: np.concatenate(self.values[name])[has] for name in MEASURES if name in self.values}
        means = {name: Mean(value, positions[has]) for name, value in values.items()}
        found = bootstrap(means, seed)
        estimates = {name: Estimate(mean.value, *found.get(name, (None, None))) for name, mean in means.items()}
        return SetEffect(int(has.sum()), int(positions.sum()), estimates)


def effects(edited: Edited, examples: Iterable[Examples], total: int = 0, quiet: bool = True) -> dict[str, SetEffect]:
    """Measure an edit on each set of positions, ``{"on": ..., "off": ...}``.

    Args:
        edited: the network with its edits.
        examples: batches with the positions of each set.
        total: how many there are, for the progress bar.
        quiet: no progress bar.

    Raises:
        RunError: a set without any position.
    """
    run = edited.run
    program = jax.jit(partial(_measured, run.experiment.problem, edited.gated))
    totals: dict[str, Totals] = {}
    with training_meter(total, 0, bar_unless(quiet), "measuring the edit", "step") as meter:
        for i, one in enumerate(examples):
            where = {name: jnp.asarray(own) for name, own in one.where.items()}
            found = program(run.experiment.target, run.decomposition, edited.arrays, jnp.asarray(one.batch), where)
            for name, sums in jax.device_get(found).items():
                totals.setdefault(name, Totals()).add(sums)
            meter(i + 1, {})
    return {name: totals[name].effect(run.config.pd.seed, name) for name in SETS if name in totals}


def _measured(
    problem: Problem,
    gated: bool,
    target: Target,
    decomposition: Decomposition,
    added: dict[str, Added],
    batch: Array,
    where: dict[str, Array],
) -> dict[str, Sums]:
    before = recorded_forward(target, batch).output
    after = edited_forward(problem, gated, target, decomposition, added, batch)
    return {name: sums_of(target, before, after, batch, own) for name, own in where.items()}


def sums_of(
    target: Target, before: Activation, after: Activation, batch: Batch, where: Bool[Array, "*leading"]
) -> Sums:
    """Sums over the positions of a set for each sequence (or example).

    Args:
        target: whose outputs these are.
        before: unedited.
        after: edited.
        batch: input.
        where: the positions; of sequences none at the end, which has no next token.
    """
    values: dict[str, Float[Array, "*leading"]] = {}
    distance = target.divergence(before, after)
    if isinstance(target, Induction | LanguageModel):
        following = jnp.roll(batch, -1, axis=-1)
        ce = [cross_entropy(logits, following) for logits in (before, after)]
        best = [jnp.argmax(dense(logits), axis=-1).astype(batch.dtype) for logits in (before, after)]
        values |= {"kl": distance, "changed": _number(best[0] != best[1])}
        values |= {"ce_before": ce[0], "ce_after": ce[1], "ce_change": ce[1] - ce[0]}
        values |= {
            f"right_{when}": _number(one == following) for when, one in zip(("before", "after"), best, strict=True)
        }
    else:
        values["squared_error" if isinstance(target, TMS | ResidMLP) else "divergence"] = distance
    axes = tuple(range(1, where.ndim))
    return Sums(
        jnp.sum(where, axis=axes, dtype=jnp.float32),
        {name: jnp.sum(jnp.where(where, x.astype(jnp.float32), 0.0), axis=axes) for name, x in values.items()},
    )


def _number(condition: Shaped[Array, "*leading"]) -> Float[Array, "*leading"]:
    return condition.astype(jnp.float32)
