"""Which subcomponents of a run fire where: one pass over its data, of which some positions are kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from vpd.analysis.clustering.memberships import Memberships, from_dense, joined
from vpd.analysis.run import Run
from vpd.data.feed import Batches, HostBatches
from vpd.errors import RunError

SPLITS = ("eval", "train")


@dataclass(frozen=True)
class Sampling:
    """Which positions are looked at, and what is seen there.

    Attributes:
        positions: how many at most.
        threshold: a subcomponent fires where its lower causal importance is above it.
        split: ``eval`` or ``train``, the stream of the run that is read from its beginning.
        per_sequence: of a sequence at most so many positions are kept, drawn at random.
        seed: of these draws.
        min_firings: subcomponents that fire at fewer positions are left out.
        always_on: those that fire at more than this fraction of them are left out.
    """

    positions: int = 100_000
    threshold: float = 0.1
    split: str = "eval"
    per_sequence: int = 64
    seed: int = 0
    min_firings: int = 10
    always_on: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can't be done.

        Raises:
            RunError: a value that can't be used.
        """
        if self.split not in SPLITS:
            raise RunError(f"there is no split {self.split!r} of a run; write eval or train")
        if not 0 <= self.threshold < 1:
            raise RunError(f"no causal importance is above {self.threshold:g}; give a --threshold from 0 to below 1")
        if not 0 < self.always_on <= 1:
            raise RunError(f"{self.always_on:g} is no fraction of the positions; give an --always-on above 0, up to 1")
        if min(self.positions, self.per_sequence, self.min_firings) < 1:
            raise RunError("numbers of positions, of positions a sequence and of firings are at least 1")


@dataclass(frozen=True)
class Selection:
    """The subcomponents that take part, and why the others don't.

    Attributes:
        kept: places on the run's axis, ascending.
        dead: number of those that fire nowhere.
        rare: that fire at too few positions.
        always_on: that fire at too many.
    """

    kept: Int[np.ndarray, " m"]
    dead: int
    rare: int
    always_on: int


def select(memberships: Memberships, sampling: Sampling) -> Selection:
    """Which subcomponents take part.

    Raises:
        RunError: where fewer than two do.
    """
    counts = memberships.counts
    rare = (counts > 0) & (counts < sampling.min_firings)
    always = counts > sampling.always_on * memberships.positions
    kept = np.flatnonzero((counts > 0) & ~rare & ~always)
    found = Selection(kept, int(np.sum(counts == 0)), int(rare.sum()), int(always.sum()))
    if len(kept) < 2:
        raise RunError(
            f"{len(kept)} of {memberships.n} subcomponents can be clustered, and a cluster takes two: at "
            f"{memberships.positions} positions {found.dead} never fire above {sampling.threshold:g}, {found.rare} do "
            f"at fewer than {sampling.min_firings} and {found.always_on} at more than {sampling.always_on:.0%}; "
            "give more --positions or other limits"
        )
    return found


def collect(
    runs: Sequence[Run], sampling: Sampling, watch: Callable[[int], None] = lambda positions: None
) -> list[Memberships]:
    """Firings of every subcomponent of runs of one target, at the same positions of the first run's data.

    A text is read once at most, so that there may be fewer positions than asked for.

    Args:
        runs: opened; usually one.
        sampling: which positions.
        watch: called with the number of positions so far.

    Returns:
        For each run its firings, subcomponents in the order of ``run.axis``.

    Raises:
        RunError: a split that the run doesn't have.
    """
    rng = np.random.default_rng(sampling.seed)
    parts: list[list[Memberships]] = [[] for _ in runs]
    seen = 0
    for batch in _batches(runs[0], sampling.split):
        importances = [run.causal_importances(batch) for run in runs]
        leading = next(iter(importances[0].values())).shape[:-1]
        at = _chosen(leading, sampling.per_sequence, rng)[: sampling.positions - seen]
        for run, found, part in zip(runs, importances, parts, strict=True):
            fires = {
                site: x.reshape(-1, x.shape[-1])[jnp.asarray(at)] > sampling.threshold for site, x in found.items()
            }
            part.append(from_dense(run.axis.joined({site: np.asarray(x) for site, x in fires.items()})))
        seen += len(at)
        watch(seen)
        if seen >= sampling.positions:
            break
    return [joined(part) for part in parts]


def _chosen(leading: tuple[int, ...], per_sequence: int, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """Positions of a batch in a row: of each sequence a few at random, ascending."""
    length = math.prod(leading[1:])
    drawn = rng.random((leading[0], length)).argsort(axis=1)[:, :per_sequence]
    return np.sort(np.arange(leading[0])[:, None] * length + drawn, axis=1).ravel()


def _batches(run: Run, split: str) -> Iterator[Shaped[Array, "..."]]:
    draw = run.experiment.train_batch if split == "train" else run.experiment.eval_batch
    if draw is None:
        raise RunError(f"{run.path} has no evaluation data, as its run file has no eval block; give --split train")
    number, last = 0, _number(draw)
    while last is None or number < last:
        yield draw(jnp.asarray(run.config.pd.seed, jnp.uint32), jnp.asarray(number, jnp.int32))
        number += 1


def _number(draw: Batches) -> int | None:
    """Batches until a text has been read once; None where there always is another one."""
    if not isinstance(draw, HostBatches):
        return None
    from vpd.data.tokens import TokenBatches  # Arrow, which only text needs

    assert isinstance(draw.rows, TokenBatches)
    return max(1, draw.rows.rows // draw.rows.batch_size)
