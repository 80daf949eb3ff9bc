"""The alive spectrum as numbers: mean importances by rank, thinned, for who would zoom into them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ValidationError

from vpd.errors import RunError

SPECTRUM = "spectrum.json"
MAX_RANKS = 60  # of each matrix; the cut between alive and dead keeps both its neighbours


class Ranked(BaseModel):
    """Sorted mean importances of one matrix: ``values[i]`` is that of rank ``ranks[i]``, counted from 1."""

    C: int
    alive: int
    ranks: list[int]
    values: list[float]


class Spectrum(BaseModel):
    """Of every matrix, and what a mean importance has to be above to be alive."""

    cut: float
    sites: dict[str, Ranked]


def spectrum_record(mean_ci: Mapping[str, Float[np.ndarray, " _C"]], cut: float) -> dict[str, object]:
    """The spectrum of an evaluation, for JSON.

    Args:
        mean_ci: mean lower importance of every subcomponent by site.
        cut: what it has to be above to be alive.
    """
    return Spectrum(cut=cut, sites={site: _ranked(values, cut) for site, values in mean_ci.items()}).model_dump()


def _ranked(values: Float[np.ndarray, " _C"], cut: float) -> Ranked:
    falling = np.sort(values)[::-1]
    alive = int(np.sum(falling > cut))
    at = _shown_ranks(len(falling), alive)
    return Ranked(
        C=len(falling), alive=alive, ranks=(at + 1).tolist(), values=[float(f"{falling[i]:.4g}") for i in at.tolist()]
    )


def _shown_ranks(C: int, alive: int) -> Int[np.ndarray, " _k"]:
    """All ranks, or some evenly spread ones and those at the cut."""
    if C <= MAX_RANKS:
        return np.arange(C)
    spread = np.linspace(0, C - 1, MAX_RANKS - 2).round().astype(int)
    edge = [rank for rank in (alive - 1, alive) if 0 <= rank < C]
    return np.unique(np.concatenate([spread, edge]).astype(int))


def newest_spectrum(figures: Path) -> tuple[int, Spectrum] | None:
    """The spectrum of the newest evaluation that has one, and the step of it.

    Raises:
        RunError: a file that is none.
    """
    steps: Sequence[int] = [
        int(path.parent.name) for path in figures.glob(f"[0-9]*/{SPECTRUM}") if path.parent.name.isdecimal()
    ]
    if not steps:
        return None
    path = figures / str(max(steps)) / SPECTRUM
    try:
        return max(steps), Spectrum.model_validate_json(path.read_bytes())
    except ValidationError:
        raise RunError(f"{path} holds no spectrum: restore it, or delete it to do without.") from None
