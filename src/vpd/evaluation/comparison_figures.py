"""Pictures of several runs side by side: numpy arrays in, matplotlib figures out, in the style of ``figures``."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vpd.evaluation.figures import BLUE, GREY, STYLE, VERMILLION, grid_of_panels, shown_sites, titled

AGREEING = 0.99  # paler than any colour: what is this alike differs by training noise
MAX_NUMBERED, MAX_LABELLED = 12, 24
_TICKS = (0.99, 0.97, 0.9, 0.7, 0.0)

Matrix = Float[np.ndarray, "runs runs"]
Curve = Float[np.ndarray, " _n"]
Points = Float[np.ndarray, "_n 2"]

CAPTIONS: dict[str, dict[str, str]] = {
    "agreement": {
        "title": "Agreement of every run with every other",
        "caption": "Mean rank-one cosine of the matched live subcomponents; one without a partner counts 0. "
        "Good: every cell is pale (0.99 or better). A run that found something else is a dark row and column. "
        "The scale is logarithmic in what is missing to 1.",
    },
    "similarity_curves": {
        "title": "How alike the matched subcomponents are",
        "caption": "One line for each pair of runs: rank-one cosines in falling order, 0 for a subcomponent without a "
        "partner. Good: all lines stay at 1 to the end. A line that falls at its end has a few subcomponents that "
        "differ; one that is low throughout found another basis.",
    },
    "pareto": {
        "title": "Sparsity against reconstruction",
        "caption": "Lower is better on both axes. Filled points are on the front: no other run is as good on both axes "
        "and better on one.",
    },
}


@STYLE
def agreement(matrices: Mapping[str, Matrix], labels: Sequence[str]) -> Figure:
    """A heat map a site: dark where two runs disagree.

    Args:
        matrices: agreement of each pair of runs per site; NaN where there is none, as on the diagonal.
        labels: names of the runs.
    """
    sites = shown_sites(matrices)
    n = len(labels)
    figure, axes = grid_of_panels(len(sites), min(max(0.45 * n, 1.8), 5.0) + 0.9)
    norm = FuncNorm((_missing, _agreement), vmin=0.0, vmax=AGREEING)
    image = None
    for panel, (ax, site) in enumerate(zip(axes, sites, strict=True)):
        matrix = np.ma.masked_invalid(np.clip(matrices[site], 0.0, AGREEING))
        ax.set_facecolor("#d9d9d9")
        image = ax.imshow(matrix, cmap="magma", norm=norm, interpolation="nearest")
        at = range(0, n, -(-n // MAX_LABELLED))
        short = max(map(len, labels)) <= 4
        below = [labels[i] if short else str(i + 1) for i in at]
        # Long names once a row of panels: more would leave no room for the cells.
        beside = below if short or panel % 2 else [f"{_short(labels[i], 24)}  {i + 1}" for i in at]
        ax.set_xticks(at, below, fontsize=8.5)
        ax.set_yticks(at, beside, fontsize=8.5)
        ax.spines[:].set_visible(True)
        ax.set(xlabel="run", ylabel="run", title=site)
        if n <= MAX_NUMBERED:
            _number_cells(ax, matrices[site])
    assert image is not None
    bar = figure.colorbar(image, ax=axes, label="agreement", shrink=min(1.0, 3.4 / figure.get_figheight()), aspect=24)
    bar.set_ticks(list(_TICKS), labels=[f"≥ {AGREEING}", *(f"{tick:g}" for tick in _TICKS[1:])])
    bar.ax.minorticks_off()
    return titled(figure, CAPTIONS["agreement"]["title"], sites, matrices)


def _missing(agreement: np.ndarray) -> np.ndarray:
    """From agreement to brightness: 1 at 0.99 and better, 0 at 0, logarithmic between."""
    lost = np.clip(1.0 - np.asarray(agreement, np.float64), 1.0 - AGREEING, 1.0)
    return np.log(lost) / np.log(1.0 - AGREEING)


def _agreement(brightness: np.ndarray) -> np.ndarray:
    return 1.0 - (1.0 - AGREEING) ** np.asarray(brightness, np.float64)


def _number_cells(ax: Axes, matrix: Matrix) -> None:
    size = 9 if len(matrix) <= 6 else 6.5
    dark = _missing(np.clip(matrix, 0.0, AGREEING)) < 0.6
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            colour = "w" if dark[i, j] else "k"
            ax.text(j, i, digits(float(value)), ha="center", va="center", fontsize=size, color=colour)


def digits(value: float, places: int = 3) -> str:
    """Rounded down: 1.000 means 1."""
    scale = 10**places
    return f"{math.floor(value * scale + 1e-3) / scale:.{places}f}"


@STYLE
def similarity_curves(curves: Mapping[str, Mapping[tuple[int, int], Curve]], labels: Sequence[str]) -> Figure:
    """Sorted cosines of the matched subcomponents of each pair; those of the run that agrees least stand out.

    Args:
        curves: per site and pair of runs, the cosines in falling order.
        labels: names of the runs.
    """
    sites = shown_sites(curves)
    odd = _odd_one_out([curves[site] for site in curves], len(labels))
    figure, axes = grid_of_panels(len(sites), 3.0)
    for ax, site in zip(axes, sites, strict=True):
        lowest = 0.0
        # The odd run's lines come last, on top.
        for pair, values in sorted(curves[site].items(), key=lambda item: odd in item[0]):
            colour, width, order = (VERMILLION, 1.6, 3) if odd in pair else (BLUE, 1.2, 2)
            rank = np.arange(1, len(values) + 1)
            dots = "o" if len(values) <= 40 else None
            ax.plot(rank, values, color=colour, linewidth=width, marker=dots, markersize=4, alpha=0.7, zorder=order)
            lowest = min(lowest, float(values.min(initial=0.0)))
        ax.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        ax.set(ylim=(lowest - 0.05, 1.05), xlabel="matched pair, by rank", ylabel="rank-one cosine", title=site)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(axis="y")
    ordinary = "pairs of the other runs" if odd is not None else "pairs of runs"
    handles = [Line2D([], [], color=BLUE, marker="o", label=ordinary)]
    if odd is not None:
        label = f"pairs with {_short(labels[odd])}, which agrees least"
        handles.append(Line2D([], [], color=VERMILLION, marker="o", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return titled(figure, CAPTIONS["similarity_curves"]["title"], sites, curves)


def _odd_one_out(curves: Sequence[Mapping[tuple[int, int], Curve]], n: int) -> int | None:
    """The run with the lowest mean cosine over its pairs; of two runs none is odder than the other."""
    if n < 3:
        return None
    totals, counts = np.zeros(n), np.zeros(n)
    for pairs in curves:
        for pair, values in pairs.items():
            if len(values):
                totals[list(pair)] += float(np.mean(values))
                counts[list(pair)] += 1
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.inf)
    return int(np.argmin(means)) if np.isfinite(means).any() else None


@STYLE
def pareto(points: Points, front: Bool[np.ndarray, " _n"], labels: Sequence[str], l0: str, recon: str) -> Figure:
    """Runs by sparsity and reconstruction, each named at the side, the front joined by steps.

    Args:
        points: L0 and reconstruction of each run.
        front: which of them no other is better than.
        labels: names of the runs.
        l0: what the first axis is.
        recon: what the second axis is.
    """
    named = np.arange(len(points)) if len(points) <= MAX_LABELLED else np.flatnonzero(front)[:MAX_LABELLED]
    figure = Figure(figsize=(9, max(4.2, 0.24 * len(named) + 1.6)))
    ax = figure.subplots()
    order = np.lexsort((-points[:, 1], points[:, 0]))
    steps = points[order][front[order]]
    ax.step(steps[:, 0], steps[:, 1], where="post", color=GREY, linewidth=1.2, zorder=1)
    if not front.all():
        ax.plot(*points[~front].T, "o", color=BLUE, markerfacecolor="w", markersize=7, label="another run is better")
    ax.plot(*points[front].T, "o", color=VERMILLION, markersize=8, label="on the front")
    _set_range(ax, points)
    _name_points(ax, points, named, labels)
    ax.set(xlabel=l0, ylabel=recon + (" (log)" if ax.get_yscale() == "log" else ""))
    ax.yaxis.label.set_fontsize(9)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid()
    figure.legend(loc="outside lower center", ncols=2)
    note = "" if len(named) == len(points) else f" ({len(named)} of {len(points)} named)"
    return titled(figure, CAPTIONS["pareto"]["title"] + note)


def _set_range(ax: Axes, points: Points) -> None:
    """Room around the points, and no less than 10 % of a value: noise should look like noise."""
    x, y = points.T
    middle, half = (x.min() + x.max()) / 2, max(0.6 * (x.max() - x.min()), 0.05 * abs(x).max(), 1e-9)
    ax.set_xlim(middle - half, middle + half)
    if y.min() > 0 and y.max() > 5 * y.min():
        ax.set_yscale("log")
        ax.set_ylim(y.min() / 1.4, y.max() * 1.4)
    else:
        middle, half = (y.min() + y.max()) / 2, max(0.6 * (y.max() - y.min()), 0.05 * abs(y).max(), 1e-12)
        ax.set_ylim(middle - half, middle + half)


def _name_points(ax: Axes, points: Points, named: np.ndarray, labels: Sequence[str]) -> None:
    """Names in a column at the right, in the order of height, each led to its point: close points keep theirs."""
    order: list[int] = named[np.argsort(points[named, 1], kind="stable")].tolist()
    heights = (np.arange(len(order)) + 0.5) / max(len(order), 1)
    for i, height in zip(order, map(float, heights), strict=True):
        ax.annotate(
            _short(labels[i]),
            (float(points[i, 0]), float(points[i, 1])),
            (1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4},
        )


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-most // 2 :]}"
