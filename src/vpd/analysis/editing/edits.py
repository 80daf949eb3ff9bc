"""An edit of one subcomponent, and what it adds to its matrix.

An edit replaces ``V_c ⊗ U_c`` by ``factor · V' ⊗ U'`` and leaves everything else in place, the weight delta included:
factor 0 removes the rank-one matrix from W (``W −= V_c U_c``), which is the same as a mask of 0 with all other masks
and the delta at 1; another factor boosts it; V' or U' make it read or write another direction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vpd.analysis.names import Subcomponent, parse_subcomponent
from vpd.analysis.run import Run
from vpd.errors import RunError

Direction = Sequence[float] | Float[np.ndarray, " _d"] | str
Vector = Float[np.ndarray, " _d"]


@dataclass(frozen=True)
class Edit:
    """What becomes of one subcomponent.

    Attributes:
        subcomponent: ``SITE:INDEX``.
        factor: 0 ablates, 1 leaves its strength.
        read: direction that it reads in place of ``V_c``, at the length of ``V_c``: numbers ``[d_in]``, or the
            ``SITE:INDEX`` of another subcomponent whose V is taken.
        write: direction that it writes in place of ``U_c``, at the length of ``U_c``, ``[d_out]`` or ``SITE:INDEX``.
        positions: of the sequence where the edit holds, from 0; None is everywhere.
        when_active: holds only where the causal importance on the clean input is above this; None is everywhere.
    """

    subcomponent: str
    factor: float = 1.0
    read: Direction | None = field(default=None, compare=False)
    write: Direction | None = field(default=None, compare=False)
    positions: tuple[int, ...] | None = None
    when_active: float | None = None

    @property
    def everywhere(self) -> bool:
        """Whether it is an edit of the network itself, whatever the input."""
        return self.positions is None and self.when_active is None

    def as_record(self) -> dict[str, object]:
        """As plain values."""
        directions = {name: _plain(value) for name, value in (("read", self.read), ("write", self.write))}
        where = {"positions": None if self.positions is None else list(self.positions), "when_active": self.when_active}
        rest = {name: value for name, value in (directions | where).items() if value is not None}
        return {"subcomponent": self.subcomponent, "factor": self.factor, **rest}


def _plain(direction: Direction | None) -> object:
    if direction is None or isinstance(direction, str):
        return direction
    return [float(x) for x in direction]


@dataclass(frozen=True)
class RankOne:
    """``weight · v ⊗ u``, added to a matrix where its edit holds.

    Attributes:
        of: the subcomponent that is edited.
        v: ``[d_in]``.
        u: ``[d_out]``.
        weight: its factor.
        edit: whence it comes.
    """

    of: Subcomponent
    v: Vector
    u: Vector
    weight: float
    edit: Edit


def added_by(run: Run, edits: Sequence[Edit]) -> Mapping[str, list[RankOne]]:
    """What the edits add to each matrix, by site in numeric layer order.

    Raises:
        RunError: no edit, an unknown subcomponent, one edited twice, a factor that is no finite number, a direction of
            another length or of length 0, or positions without a sequence.
    """
    if not edits:
        raise RunError("there is nothing to edit; name at least one subcomponent, as in --ablate SITE:INDEX")
    sizes = run.axis.sizes
    found: dict[str, list[RankOne]] = {}
    seen: set[Subcomponent] = set()
    for edit in edits:
        one = parse_subcomponent(edit.subcomponent, sizes)
        if one in seen:
            raise RunError(f"{one} is edited twice; write one edit of it")
        seen.add(one)
        _refuse_odd(run, edit)
        found.setdefault(one.site, []).extend(_added(run, one, edit))
    return {site: found[site] for site in sizes if site in found}


def _added(run: Run, one: Subcomponent, edit: Edit) -> list[RankOne]:
    v, u = _pieces(run, one)
    if edit.read is None and edit.write is None:
        return [RankOne(one, v, u, edit.factor - 1, edit)]
    new_v = v if edit.read is None else _at_length(_direction(run, edit.read, 0), v, one, "read")
    new_u = u if edit.write is None else _at_length(_direction(run, edit.write, 1), u, one, "write")
    return [RankOne(one, v, u, -1.0, edit), RankOne(one, new_v, new_u, edit.factor, edit)]


def _pieces(run: Run, one: Subcomponent) -> tuple[Vector, Vector]:
    pieces = run.components(one.site)
    return np.asarray(pieces.V[:, one.index], np.float32), np.asarray(pieces.U[one.index], np.float32)


def _direction(run: Run, given: Direction, side: int) -> Vector:
    """Numbers, or V (side 0) or U (side 1) of another subcomponent."""
    if isinstance(given, str):
        return _pieces(run, parse_subcomponent(given, run.axis.sizes))[side]
    return np.asarray(given, np.float32)


def _at_length(direction: Vector, old: Vector, one: Subcomponent, what: str) -> Vector:
    length = float(np.linalg.norm(direction)) if direction.ndim == 1 else math.nan
    if direction.shape != old.shape:
        raise RunError(f"{one}: the {what} direction has shape {direction.shape}, and needs {old.shape}")
    if not (math.isfinite(length) and length > 0):
        raise RunError(f"{one}: the {what} direction has length {length:g}; give finite numbers that are not all 0")
    return direction * np.float32(np.linalg.norm(old) / length)


def _refuse_odd(run: Run, edit: Edit) -> None:
    if isinstance(edit.factor, bool) or not math.isfinite(edit.factor):
        raise RunError(f"{edit.subcomponent}: factor {edit.factor!r} is no finite number; write one, as in 0 or 2.5")
    if edit.factor == 1 and edit.read is None and edit.write is None:
        raise RunError(f"{edit.subcomponent}: factor 1 without a direction changes nothing; write another factor")
    if edit.when_active is not None and not 0 <= edit.when_active < 1:
        raise RunError(f"{edit.subcomponent}: when_active {edit.when_active:g} is no importance from 0 to below 1")
    if edit.positions is None:
        return
    if not run.config.has_sequence:
        raise RunError(
            f"{edit.subcomponent}: positions need a sequence, and {run.path} decomposes a network without one"
        )
    if not edit.positions or min(edit.positions) < 0:
        raise RunError(f"{edit.subcomponent}: positions {list(edit.positions)} are not counts from 0; write some")
