"""Schedules written as knots, as today's schedules where the knots describe exactly one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import TypeAdapter, ValidationError

from vpd.config.block import show
from vpd.config.legacy.draft import Path, leaves
from vpd.config.legacy.rules import Field, Rule, unknown
from vpd.config.values import NonNegative, is_block, is_list

_NUMBER: TypeAdapter[float] = TypeAdapter(NonNegative)
_LR = "lr_schedule is a linear warm-up from 0, then one constant, linear or cosine piece that ends with the run"
_KEYS = ("max_val", "points", "at", "frac", "interp")
_GAMMA = "annealing is one linear piece between two constant ones"


@dataclass(frozen=True)
class Knot:
    """A point of a schedule: at a fraction of training, a fraction of the top value, and how it was reached."""

    at: float
    frac: float
    interp: str


@dataclass(frozen=True)
class Knots:
    """A top value, and the points between which a schedule is interpolated."""

    max_val: float
    points: tuple[Knot, ...]


def read_knots(value: object) -> Knots | str:
    """The knots of a block with `max_val` and `points`, or what is wrong with it."""
    top = number(value.get("max_val")) if is_block(value) else None
    points = value.get("points") if is_block(value) else None
    if top is None:
        return "max_val has to be a number >= 0"
    if not is_list(points) or not points:
        return "points have to be a list of {at, frac, interp}"
    knots: list[Knot] = []
    for point in points:
        at, frac = (number(point.get("at")), number(point.get("frac"))) if is_block(point) else (None, None)
        if at is None or frac is None or not is_block(point):
            return f"a point has at and frac, got {show(point)}"
        interp = "linear" if point.get("interp") is None else point["interp"]
        if interp not in ("linear", "cosine"):
            return f"interp is linear or cosine, got {show(interp)}"
        knots.append(Knot(at, frac, str(interp)))
    if knots[0].at != 0 or any(a.at >= b.at for a, b in pairwise(knots)) or knots[-1].at > 1:
        return "points go from at 0 upwards to at most 1"
    return Knots(top, tuple(knots))


def number(value: object) -> float | None:
    """A finite number >= 0, also one that is written 3e-3."""
    try:
        return _NUMBER.validate_python(value)
    except ValidationError:
        return None


def lr_schedule(knots: Knots) -> dict[str, object] | str:
    """Today's learning-rate schedule with the same values, or why there is none."""
    points, warmup = list(knots.points), 0.0
    if len(points) > 1 and points[0].frac == 0:
        warmup = points[1].at
        if points[1].interp != "linear":
            return f"{_LR}, and this one warms up by a {points[1].interp}"
        points = points[1:]
    peak = points[0].frac
    if peak == 0:
        return f"{_LR}, and this one is 0 for longer than a step"
    schedule: dict[str, object] = {"start_val": knots.max_val if peak == 1 else knots.max_val * peak}
    if warmup:
        schedule["warmup_pct"] = warmup
    if all(point.frac == peak for point in points):
        return {**schedule, "fn_type": "constant"}
    if len(points) != 2 or points[1].at != 1:
        return f"{_LR}, and this one has points at {_places(points)}"
    final = points[1].frac if peak == 1 else points[1].frac / peak
    return {**schedule, "final_val_frac": final, "fn_type": points[1].interp}


def annealing(knots: Knots) -> dict[str, object] | str:
    """Today's annealing of γ with the same values, or why there is none."""
    points = knots.points
    first, last = points[0].frac, points[-1].frac
    start = next((i for i, point in enumerate(points) if point.frac != first), len(points)) - 1
    values: dict[str, object] = {"gamma": knots.max_val * first}
    if start == len(points) - 1:
        return values
    end = points[start + 1]
    if any(point.frac != last for point in points[start + 1 :]):
        return f"{_GAMMA}, and this one moves between {_places(points)}"
    if end.interp != "linear":
        return f"{_GAMMA}, and this one is a {end.interp}"
    return {
        **values,
        "gamma_anneal_start_frac": points[start].at,
        "gamma_anneal_final_gamma": knots.max_val * last,
        "gamma_anneal_end_frac": end.at,
    }


def knotted(new: str, read: Callable[[Knots], dict[str, object] | str], parent: str = "") -> Rule:
    """A schedule that is knots, or already in today's form.

    Args:
        new: key of today's schedule.
        read: what the knots mean.
        parent: the block that the values of `read` go to; "" for the one beside.
    """

    def rule(field: Field) -> None:
        if not is_block(field.value) or not {"max_val", "points"} & set(field.value):
            field.move(new)
            return
        knots = read_knots(field.value)
        found = knots if isinstance(knots, str) else read(knots)
        values = {} if isinstance(found, str) else {parent + key: value for key, value in found.items()}
        says = found if isinstance(found, str) else _in_words(found)
        kept = False
        for inner, leaf in leaves(field.value):
            at = Field(field.draft, (*field.old, *inner), leaf, field.beside)
            if not _is_known(inner):
                at.refuse(unknown(str(inner[-1]), dict.fromkeys(_KEYS), field.draft.vocabulary), new)
            elif isinstance(found, str):
                at.refuse(found, new)
            elif kept:
                at.compute("one of its points", {}, new)
            else:
                at.compute(says, values)
                kept = True

    return rule


def _in_words(values: Mapping[str, object]) -> str:
    return "the points are those of " + ", ".join(f"{key} {value}" for key, value in values.items())


def _is_known(inner: Path) -> bool:
    return inner in (("max_val",), ("points",)) or (len(inner) == 3 and inner[0] == "points" and inner[2] in _KEYS)


def _places(points: Sequence[Knot]) -> str:
    return ", ".join(f"{point.at:g}" for point in points)
