"""Pictures of a decomposition: numpy arrays in, matplotlib figures out.

No pyplot, no files: every function returns a `Figure`, and `png` turns one into bytes. Red and blue of the
heat maps and the Okabe-Ito colours of the lines stay apart for colour-blind readers.
"""

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from vpd.evaluation.plates import MAX_SITES

MAX_COLUMNS, MAX_ROWS = 64, 256  # what one heat map can show legibly
PIXELS_PER_INCH = 200  # two pixels per point of a 900-wide report column: sharp on dense screens

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, ORANGE, GREY = "#B5558F", "#56B4E9", "#E69F00", "#767676"
_COLOURS, _DASHES = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE), ("-", "--", ":")
# Neighbours differ in dashes too, so that of two equal curves both are seen.
_LOOKS = tuple((_DASHES[(i + i // 6) % 3], _COLOURS[i % 6]) for i in range(18))
STYLE = mpl.rc_context(
    {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.08,
    }
)

Order = Mapping[str, Int[np.ndarray, " _C"]]
Live = Mapping[str, Bool[np.ndarray, " _C"]]
Spectra = Mapping[str, Float[np.ndarray, " _C"]]
Series = Mapping[str, Float[np.ndarray, " _n"]]
Points = Float[np.ndarray, "_n 2"]
Edges = Float[np.ndarray, " _bins_plus_1"]
Steps = Num[np.ndarray, " _n"]
_Indices = Int[np.ndarray, " _k"]
Matrix = Float[np.ndarray, "_rows _k"]


def caption(title: str, good: str) -> dict[str, str]:
    """The title of a figure, and what a good decomposition looks like in it."""
    return {"title": title, "caption": f"Good: {good}"}


# What each figure shows and what a good decomposition looks like in it, by function name (and file stem).
CAPTIONS: dict[str, dict[str, str]] = {
    "uv_plot": caption(
        "Read (V) and write (U) directions of the subcomponents",
        "every live subcomponent of a toy has one strong cell among the features, no two at the same one.",
    ),
    "direction_plot": caption(
        "Feature directions in the hidden plane",
        "one learned direction on every target direction, as long as it, and none in between.",
    ),
    "permuted_ci_plot": caption(
        "Causal importance for one feature at a time",
        "a clean diagonal, one subcomponent per feature (a few full columns for a dense layer), the rest 0.",
    ),
    "ci_histogram": caption(
        "How often each causal importance occurs",
        "one peak at 0, one at 1 and little in between: a subcomponent is needed or it is not.",
    ),
    "activation_density": caption(
        "How often each subcomponent fires",
        "the live subcomponents fire about as often as their feature is active, all others never.",
    ),
    "ci_mean_spectrum": caption(
        "Mean causal importance per subcomponent",
        "a cliff between alive and dead subcomponents, with as many alive as there are mechanisms.",
    ),
}


def png(figure: Figure) -> bytes:
    """Draws a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, facecolor="white")
    return buffer.getvalue()


@STYLE
def uv_plot(
    components: Mapping[str, Sequence[Matrix]],
    order: Order | None = None,
    live: Live | None = None,
    every: Collection[str] = (),
) -> Figure:
    """Heat maps of V and U, one row of panels a site, subcomponents as columns of both.

    Args:
        components: V [d_in, C] and U [C, d_out] per site.
        order: a permutation of the subcomponents per site; live ones first where none is given.
        live: which subcomponents are live, by their own index; without it none is marked.
        every: all matrices that there are, where these are but the first.
    """
    sites = shown_sites(components)
    columns = {s: _columns(components[s][0].shape[1], s, order, live) for s in sites}
    pairs = {s: (components[s][0][:, columns[s]], components[s][1][columns[s]].T) for s in sites}
    limit = max(float(np.abs(matrix).max()) for pair in pairs.values() for matrix in pair)
    heights = [_height(max(map(len, pairs[s])), len(sites)) for s in sites]
    figure = Figure(figsize=(9, sum(heights) + 1.3))
    axes = figure.subplots(len(sites), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    images: list[AxesImage] = []
    for row, site in zip(axes, sites, strict=True):
        for ax, matrix, role in zip(row, pairs[site], ("input", "output"), strict=True):
            rows = _strongest_rows(matrix)
            images.append(_heat(ax, matrix[rows], rows, columns[site], "RdBu_r", -limit, limit))
            few = "" if len(rows) == len(matrix) else f"\n(strongest {len(rows)} of {len(matrix)})"
            ax.set_ylabel(role + few)
            _label_columns(ax, len(columns[site]), len(components[site][1]))
            ax.set_title(f"{site}: {'V, reads' if role == 'input' else 'U, writes'}", pad=14)
            if live:
                _mark_live(ax, live[site][columns[site]])
    _colour_bar(figure, images[0], list(axes.flat), "weight (V and U, same scale)")
    if live:
        _legend(figure, _dot("v", GREEN, "live subcomponent"))
    return titled(figure, CAPTIONS["uv_plot"]["title"], sites, every or components)


@STYLE
def direction_plot(panels: Mapping[str, Sequence[Points]]) -> Figure:
    """Target feature directions in a two-dimensional hidden plane, the live subcomponents' laid over them.

    Args:
        panels: per site the target's directions [n_features, 2] and the learned ones [n_live, 2].
    """
    sites = shown_sites(panels)
    figure, axes = grid_of_panels(len(sites), 4.0)
    reach = 1.25 * max((float(np.abs(a).max()) for s in sites for a in panels[s] if a.size), default=1.0)
    for ax, site in zip(axes, sites, strict=True):
        target, learned = panels[site]
        _rays(ax, target, SKY, width=7.0, marker="o", size=11.0)
        _rays(ax, learned, VERMILLION, width=1.8, marker="X", size=8.0)
        for j, (x, y) in enumerate(target):
            scale = 14 / (math.hypot(x, y) or 1.0)
            ax.annotate(str(j), (x, y), (scale * x, scale * y), textcoords="offset points", ha="center", va="center")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set(xlabel="hidden unit 0 (weight)", ylabel="hidden unit 1 (weight)")
        ax.set_title(f"{site}: {len(target)} features, {len(learned)} live")
        ax.grid()
    _legend(
        figure,
        Line2D([], [], color=SKY, linewidth=6, marker="o", markersize=10, label="target feature (numbered)"),
        Line2D([], [], color=VERMILLION, marker="X", markersize=8, label="live subcomponent"),
    )
    return titled(figure, CAPTIONS["direction_plot"]["title"], sites, panels)


@STYLE
def permuted_ci_plot(ci: Mapping[str, Matrix], order: Order, live_threshold: float = 0.1) -> Figure:
    """Lower CI of every single-feature input (rows) by permuted subcomponent (columns)."""
    sites = shown_sites(ci)
    live = {s: np.any(ci[s] > live_threshold, axis=0) for s in sites}
    figure, axes = grid_of_panels(len(sites), _height(max(len(ci[s]) for s in sites), len(sites)) + 0.9)
    images: list[AxesImage] = []
    for ax, site in zip(axes, sites, strict=True):
        n_features, n = ci[site].shape
        columns = _columns(n, site, order, live)
        images.append(_heat(ax, ci[site][:, columns], np.arange(n_features), columns, "magma_r", 0.0, 1.0))
        _mark_live(ax, live[site][columns])
        _label_columns(ax, len(columns), n)
        ax.set_ylabel("the one active feature")
        ax.set_title(f"{site}: {live[site].sum()} live", pad=14)
    _colour_bar(figure, images[0], axes, "lower CI")
    _legend(figure, _dot("v", GREEN, f"live: CI > {live_threshold:g} for some feature"))
    return titled(figure, CAPTIONS["permuted_ci_plot"]["title"], sites, ci)


@STYLE
def ci_histogram(counts: Mapping[str, Num[np.ndarray, " _bins"]], edges: Edges) -> Figure:
    """Histograms of lower CI over positions and subcomponents, counts on a log scale."""
    sites = shown_sites(counts)
    figure, axes = grid_of_panels(len(sites), 2.5)
    top = 3.0 * max(1.0, *(float(counts[s].max()) for s in sites))
    for ax, site in zip(axes, sites, strict=True):
        # A count of 1 must show on a log axis, so bars stand on 0.5; empty bins stay below it.
        ax.stairs(np.maximum(counts[site], 0.5), edges, baseline=0.5, fill=True, color=BLUE)
        ax.set(yscale="log", ylim=(0.5, top), xlim=(edges[0], edges[-1]), title=site)
        ax.set(xlabel="lower CI of a subcomponent at a position", ylabel="count (log)")
    return titled(figure, CAPTIONS["ci_histogram"]["title"], sites, counts)


@STYLE
def activation_density(density: Spectra, threshold: float) -> Figure:
    """Fraction of positions at which each subcomponent's lower CI exceeds the threshold, sorted."""
    sites = shown_sites(density)
    figure, axes = grid_of_panels(len(sites), 2.6)
    lowest = min(float(density[s][density[s] > 0].min(initial=1e-2)) for s in sites)
    floor = 10.0 ** math.floor(math.log10(lowest) - 1e-9)
    for ax, site in zip(axes, sites, strict=True):
        values = np.sort(density[site])[::-1]
        _floored(ax, values, values > 0, floor)
        ax.set(yscale="log", ylim=(floor / 2, 1.5), ylabel="fraction of positions")
        ax.set_title(f"{site}: {(values > 0).sum()} of {len(values)} fire")
    _legend(figure, _dot("o", BLUE, "fires"), _dot("o", GREY, "never fires (0, drawn at the bottom)", False))
    return titled(figure, CAPTIONS["activation_density"]["title"], sites, density, f" (lower CI above {threshold:g})")


@STYLE
def ci_mean_spectrum(mean_ci: Spectra, alive_threshold: float = 1e-6) -> Figure:
    """Sorted mean CI per subcomponent, on a log and a linear scale, with the cut between alive and dead."""
    sites = shown_sites(mean_ci)
    figure = Figure(figsize=(9, (2.5 if len(sites) <= 4 else 2.0) * len(sites) + 1.0))
    axes = figure.subplots(len(sites), 2, squeeze=False)
    lowest = min(alive_threshold, *(float(mean_ci[s][mean_ci[s] > 0].min(initial=1.0)) for s in sites))
    floor = 10.0 ** (math.floor(math.log10(lowest)) - 1)
    for (log, linear), site in zip(axes, sites, strict=True):
        values = np.sort(mean_ci[site])[::-1]
        alive = values > alive_threshold
        _floored(log, values, alive, floor)
        _floored(linear, values, alive, 0.0)
        log.set(yscale="log", ylim=(floor / 2, 2.0), ylabel="mean lower CI (log)")
        top = max(values[0], alive_threshold)
        linear.set(ylim=(-0.04 * top, 1.1 * top), ylabel="mean lower CI")
        log.set_title(f"{site}: {alive.sum()} of {len(values)} alive")
        linear.set_title(f"{site}, linear scale")
        for ax in (log, linear):
            ax.axhline(alive_threshold, color="black", linestyle="--", linewidth=1)
    cut = Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"cut at {alive_threshold:g}")
    _legend(figure, _dot("o", BLUE, "alive"), _dot("o", GREY, "dead (zeros at the bottom)", False), cut)
    return titled(figure, CAPTIONS["ci_mean_spectrum"]["title"], sites, mean_ci)


def shown_sites(sites: Mapping[str, object]) -> list[str]:
    """The first sites, as many as one figure can hold."""
    if not sites:
        raise ValueError("a figure needs at least one site, and got none")
    return list(sites)[:MAX_SITES]


def titled(
    figure: Figure, title: str, shown: Sequence[str] = (), given: Collection[str] = (), note: str = ""
) -> Figure:
    """Sets the title, wrapped to the figure, and says so when sites were left out."""
    if len(given) > len(shown):
        note += f" (first {len(shown)} of {len(given)} sites)"
    title = textwrap.fill(title + note, int(figure.get_figwidth() * 10.5))
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    return figure


def grid_of_panels(n: int, panel_height: float) -> tuple[Figure, list[Axes]]:
    """n panels, two a row: narrower ones could not be read on a phone."""
    n_columns = min(n, 2)
    n_rows = math.ceil(n / n_columns)
    figure = Figure(figsize=(9 if n_columns == 2 else 6, n_rows * panel_height + 0.9))
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def _columns(n: int, site: str, order: Order | None, live: Live | None) -> _Indices:
    """The subcomponents to show, in order: up to the last live one and some dead ones, within the cap."""
    alive = live[site] if live else np.ones(n, bool)
    columns = order[site] if order else np.argsort(~alive, kind="stable")
    last_live = int(np.flatnonzero(alive[columns]).max(initial=-1)) + 1
    return columns[: min(n if n <= 24 else last_live + 5, MAX_COLUMNS)]


def _label_columns(ax: Axes, shown: int, n: int) -> None:
    ax.set_xlabel("subcomponent" if shown == n else f"subcomponent ({shown} of {n} shown)")


def _strongest_rows(matrix: Matrix) -> _Indices:
    """All rows, or those with the largest entries where a vocabulary would shrink below a pixel a row."""
    return np.sort(np.argsort(-np.abs(matrix).max(axis=1), kind="stable")[:MAX_ROWS])


def _height(n_rows: int, n_sites: int) -> float:
    return min(max(0.17 * n_rows, 1.1), 3.4 if n_sites <= 4 else 1.6) + 0.6


def _heat(
    ax: Axes, matrix: Matrix, rows: _Indices, columns: _Indices, colours: str, low: float, high: float
) -> AxesImage:
    """A heat map whose ticks carry the original indices, thinned until they fit."""
    image = ax.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    for axis, labels, most in ((ax.xaxis, columns, 24 if columns.max() < 100 else 12), (ax.yaxis, rows, 10)):
        at = np.arange(0, len(labels), math.ceil(len(labels) / most))
        axis.set_ticks(at, [str(labels[i]) for i in at], fontsize=8.5)
    ax.spines[:].set_visible(True)
    return image


def _colour_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """At the top, where a reader of a tall figure starts, and no longer than about four inches."""
    shrink = min(1.0, 4.0 / figure.get_figheight())
    figure.colorbar(image, ax=axes, label=label, shrink=shrink, aspect=30, anchor=(0.0, 1.0))


def _mark_live(ax: Axes, live: Bool[np.ndarray, " _k"]) -> None:
    at = np.flatnonzero(live)
    if not at.size:
        return  # an empty line outside the axes would leave no room for them
    above = offset_copy(ax.get_xaxis_transform(), ax.get_figure(root=True), y=5, units="points")
    ax.plot(at, np.ones(len(at)), "v", color=GREEN, markersize=4.5, clip_on=False, transform=above)


def _dot(marker: str, colour: str, label: str, filled: bool = True) -> Line2D:
    face = colour if filled else "none"
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markerfacecolor=face, label=label)


def _legend(figure: Figure, *handles: Line2D) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _rays(ax: Axes, points: Points, colour: str, *, width: float, marker: str, size: float) -> None:
    for x, y in points:
        ax.plot([0, x], [0, y], color=colour, linewidth=width, solid_capstyle="round")
        ax.plot([x], [y], marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.8)


def _floored(ax: Axes, values: np.ndarray, alive: np.ndarray, floor: float) -> None:
    """Points by rank, the alive ones filled; what lies below the floor is drawn on it."""
    rank = np.arange(1, len(values) + 1)
    height = np.maximum(values, floor)
    size = 5 if len(values) <= 100 else 3
    ax.plot(rank[alive], height[alive], "o", color=BLUE, markersize=size)
    ax.plot(rank[~alive], height[~alive], "o", color=GREY, markersize=size, markerfacecolor="none")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("subcomponent, by rank")
    ax.grid(axis="y")
