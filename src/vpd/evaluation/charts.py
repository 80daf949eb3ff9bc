"""Charts of the HTML pages: lines as plain numbers, thinned, which ``web/charts.js`` draws as SVG."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MOST_POINTS = 500  # of a line: more than a screen has pixels for
TICKED = 20.0  # above this ratio of largest to least a scale is logarithmic

Values = Float[np.ndarray, " _n"]


@dataclass(frozen=True)
class Line:
    """One line or cloud of points; NaN in ``y`` is a gap."""

    name: str
    x: Values
    y: Values


@dataclass(frozen=True)
class Choice:
    """What a chart shows at a time: its lines, whether on a logarithmic scale, and horizontal marks by name."""

    name: str
    lines: Sequence[Line]
    log: bool = False
    marks: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Attributes:
        id: of its element.
        title: what it shows.
        caption: what a good one looks like.
        x: what the horizontal axis is.
        y: what the vertical axis is.
        choices: one is shown, the reader chooses among several.
        choose: what they are, before the list to choose from.
        dots: points without lines between them.
    """

    id: str
    title: str
    caption: str
    x: str
    y: str
    choices: Sequence[Choice]
    choose: str = ""
    dots: bool = False


def charts_data(charts: Iterable[Chart]) -> str:
    """The charts of a page as JSON for a script element: no name in it can end that element."""
    data = json.dumps({chart.id: _chart(chart) for chart in charts}, separators=(",", ":"))
    return data.replace("<", "\\u003c")


def _chart(chart: Chart) -> dict[str, object]:
    choices = [_choice(choice) for choice in chart.choices]
    return {"title": chart.title, "x": chart.x, "choose": chart.choose, "dots": chart.dots, "choices": choices}


def _choice(choice: Choice) -> dict[str, object]:
    marks = [{"name": name, "y": value} for name, value in (choice.marks or {}).items()]
    lines: list[dict[str, object]] = []
    for line in choice.lines:
        at = thinned(line.y)
        lines.append({"name": line.name, "x": _numbers(line.x[at]), "y": _numbers(line.y[at])})
    return {"name": choice.name, "log": choice.log, "marks": marks, "lines": lines}


def _numbers(values: Values) -> list[float | int | None]:
    """Five digits, none for what is no number."""
    return [_short(value) if math.isfinite(value) else None for value in values.tolist()]


def _short(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) < 1e12 else float(f"{value:.5g}")


def thinned(values: Values, most: int = MOST_POINTS) -> Int[np.ndarray, " _k"]:
    """Which points of a long line to draw: of each of many equal stretches the lowest and the highest, and both ends.

    A spike stays a spike, which every n-th point would lose. Stretches without a number keep one point, the gap.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, most // 2).astype(int)
    kept = [0, n - 1]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        finite = start + np.flatnonzero(np.isfinite(values[start:end]))
        if finite.size:
            kept += [int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])]
        else:
            kept.append(start)
    return np.unique(kept)


def is_wide(lines: Iterable[Line]) -> bool:
    """Whether a logarithmic scale shows positive values better."""
    every = np.concatenate([np.zeros(0), *(line.y[np.isfinite(line.y)] for line in lines)])
    return bool(every.size and every.min() > 0 and every.max() > TICKED * every.min())


def drawable(series: Mapping[str, Values], x: Values, positive: bool = False) -> list[Line]:
    """The lines that have a point to draw, infinities as gaps; above 0 alone where the scale has no other."""
    lines: list[Line] = []
    for name, values in series.items():
        kept = np.where(np.isfinite(values) & ((values > 0) | (not positive)), values, np.nan)
        if not np.isnan(kept).all():
            lines.append(Line(name, x, kept))
    return lines
