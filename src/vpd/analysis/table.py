"""The subcomponents of a run as a table: from a harvest if there is one, else from a short pass."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vpd.analysis.artefacts import artefact_names
from vpd.analysis.harvest.feed import feed, settings_for
from vpd.analysis.harvest.one_pass import look
from vpd.analysis.harvest.reading import open_harvest
from vpd.analysis.harvest.settings import KIND
from vpd.analysis.harvest.store import ALIVE, norms
from vpd.analysis.run import Run

SHORT_PASS = 16_384
"""Positions that are read where there is no harvest."""


@dataclass(frozen=True)
class Row:
    """One subcomponent."""

    site: str
    index: int
    alive: bool
    density: float
    mean_ci: float
    norm: float


@dataclass(frozen=True)
class ComponentTable:
    """Columns of the same length, one row a subcomponent; ``pandas.DataFrame(table.columns())`` makes a frame of it.

    Attributes:
        site: name of the matrix.
        index: within the matrix.
        alive: whether its mean lower CI is above 1e-6 (method.md §10).
        density: part of the positions where its lower CI is above the threshold.
        mean_ci: mean lower causal importance over all positions.
        norm: ``‖V_c‖ ‖U_c‖``.
        positions: how many these are means over.
        threshold: of the density.
        source: the harvest they come from; None where they are from a short pass.
    """

    site: list[str]
    index: Int[np.ndarray, " n"]
    alive: Bool[np.ndarray, " n"]
    density: Float[np.ndarray, " n"]
    mean_ci: Float[np.ndarray, " n"]
    norm: Float[np.ndarray, " n"]
    positions: int
    threshold: float
    source: Path | None

    def __len__(self) -> int:
        return len(self.site)

    def __iter__(self) -> Iterator[Row]:
        columns = (self.index, self.alive, self.density, self.mean_ci, self.norm)
        for row in zip(self.site, *(column.tolist() for column in columns), strict=True):
            yield Row(*row)

    def columns(self) -> dict[str, object]:
        """The columns by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:6]}


def component_table(run: Run, threshold: float = 0.1) -> ComponentTable:
    """All subcomponents of a run.

    Args:
        run: an opened run.
        threshold: of the density, where there is no harvest of this checkpoint.
    """
    for name in reversed(artefact_names(run.path, KIND)):
        found = open_harvest(run.path, name)
        if found.artefact.origin == run.origin:
            N = found.positions
            firing, mean = found.firing_counts / N, found.totals["importance_sums"] / N
            return _table(run, firing, mean, found.totals["norms"], N, found.threshold, found.path)
    return _short_pass(run, threshold)


def _short_pass(run: Run, threshold: float) -> ComponentTable:
    settings = replace(settings_for(run, SHORT_PASS, threshold=threshold), vocab=None)
    take, least = feed(run, settings.split, settings.rows), jnp.asarray(threshold, jnp.float32)
    program = jax.jit(partial(look, run.experiment.problem, False))
    firing, mean, N = np.zeros(len(run.axis), np.int64), np.zeros(len(run.axis)), settings.positions
    for number in range(settings.batches):
        seen = program(run.experiment.target, run.decomposition, take(number), least)
        ci = np.asarray(seen.importances).reshape(-1, len(run.axis))
        firing += np.count_nonzero(ci > np.float32(threshold), axis=0)
        mean += ci.sum(axis=0, dtype=np.float64) / N
    return _table(run, firing / N, mean, norms(run), N, threshold, None)


def _table(
    run: Run,
    density: Float[np.ndarray, " n"],
    mean: Float[np.ndarray, " n"],
    norm: Float[np.ndarray, " n"],
    positions: int,
    threshold: float,
    source: Path | None,
) -> ComponentTable:
    sites = [site for site, C in run.axis.sizes.items() for _ in range(C)]
    index = np.concatenate([np.arange(C) for C in run.axis.sizes.values()])
    return ComponentTable(sites, index, mean > ALIVE, density, mean, norm, positions, threshold, source)
