"""Pictures of clusterings: numpy arrays in, matplotlib figures out, in the style of ``vpd.evaluation.figures``."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from vpd.analysis.clustering.history import History
from vpd.evaluation.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILLION

MAX_LEAVES, MAX_CELLS, MAX_OF_CLUSTER = 120, 400, 40  # what a tree, and a heat map, can show legibly
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE)

Labels = Int[np.ndarray, " n"]
Square = Float[np.ndarray, "m m"]


class Course(NamedTuple):
    """One history, and what to call it."""

    label: str
    history: History


@STYLE
def cost_curve(courses: Sequence[Course]) -> Figure:
    """Description length and marginal cost against the number of groups, with the cuts.

    Args:
        courses: one line each; those of one label share a colour.
    """
    figure = Figure(figsize=(8.4, 5.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    colours = {label: _COLOURS[i % 6] for i, label in enumerate(dict.fromkeys(one.label for one in courses))}
    for label, colour in colours.items():
        cuts = [one.history.n - one.history.cut for one in courses if one.label == label]
        several = f"{min(cuts)} to {max(cuts)}" if min(cuts) < max(cuts) else str(cuts[0])
        above.plot([], [], color=colour, lw=1.3, label=f"{label}: cut at {several} clusters")
    for label, history in courses:
        groups, colour = np.arange(history.n, 0, -1), colours[label]
        above.plot(groups, history.lengths, color=colour, lw=1.3)
        above.plot(history.n - history.cut, history.lengths[history.cut], "o", color=colour, ms=6)
        below.plot(groups[1:], history.costs, color=colour, lw=0.9, marker="." if history.n <= 60 else None)
        below.axvline(history.n - history.cut, color=colour, lw=0.9, ls=":")
    above.set(ylabel="description length\n(bits per position)", ylim=(0, None))
    below.set(xlabel="groups left", ylabel="cost of the merge\n(bits per position)")
    below.axhline(0, color=GREY, lw=0.9)
    _around_zero(below, courses)
    below.set_xscale("log" if courses[0].history.n > 100 else "linear")
    below.invert_xaxis()
    above.legend(fontsize=9)
    above.grid(True)
    below.grid(True)
    return figure


def _around_zero(ax: Axes, courses: Sequence[Course]) -> None:
    """A scale on which the crossing of 0 is seen beside costs that are a thousand times as large."""
    costs = np.concatenate([np.abs(history.costs) for _, history in courses])
    costs = costs[costs > 0]
    if len(costs) and costs.max() > 30 * np.median(costs):
        linear = float(np.median(costs))
        ax.set_yscale("symlog", linthresh=linear)
        ax.set_yticks([tick for tick in ax.get_yticks() if tick == 0 or abs(tick) >= linear])


@STYLE
def merge_tree(history: History, names: Sequence[str], labels: Labels) -> Figure:
    """Which groups merge when, from every subcomponent alone to one group; a colour for each cluster of the cut.

    Args:
        history: all merges of at most ``MAX_LEAVES`` subcomponents.
        names: of the subcomponents.
        labels: cluster of each.
    """
    n = history.n
    figure = Figure(figsize=(8.4, max(2.6, 0.9 + 0.17 * n)))
    ax = figure.subplots()
    tree = dendrogram(_linkage(history), no_plot=True)
    leaves, heights, places = (np.asarray(tree[what]) for what in ("leaves", "dcoord", "icoord"))
    for x, at in zip(places, heights, strict=True):
        leaf = leaves[int((x[0] - 5) // 10)]
        before_cut = at[1] <= history.cut
        colour = _COLOURS[labels[leaf] % 6] if before_cut else GREY
        ax.plot(at, x, color=colour, lw=1.4 if before_cut else 0.9)
    ax.axvline(history.cut + 0.5, color="k", lw=0.9, ls=":")
    ax.text(history.cut + 0.5, 10 * n + 2, f"cut: {n - history.cut} clusters", ha="center", va="bottom", fontsize=9)
    ax.set_yticks(10 * np.arange(n) + 5, [str(names[int(leaf)]) for leaf in leaves], fontsize=8 if n <= 60 else 6)
    ax.set(xlabel="merge", ylim=(0, 10 * n), xlim=(0, n))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def _linkage(history: History) -> Float[np.ndarray, "merges 4"]:
    """The merges as SciPy writes them: the height is the number of the merge, so that none is below another."""
    node, size = np.arange(history.n), np.ones(history.n)
    rows = np.empty((history.n - 1, 4))
    for t, (a, b) in enumerate(history.pairs):
        size[a] += size[b]
        rows[t] = node[a], node[b], t + 1, size[a]
        node[a] = history.n + t
    return rows


@STYLE
def merge_order(history: History) -> Figure:
    """How large the merged groups are, merge by merge, where there are too many subcomponents for a tree."""
    n = history.n
    figure = Figure(figsize=(8.4, 3.8))
    ax = figure.subplots()
    size = np.ones(n)
    small, large = np.empty(n - 1), np.empty(n - 1)
    for t, (a, b) in enumerate(history.pairs):
        small[t], large[t] = sorted((size[a], size[b]))
        size[a] += size[b]
    merges = np.arange(1, n)
    ax.plot(merges, large, ".", color=BLUE, ms=3, label="larger group")
    ax.plot(merges, small, ".", color=VERMILLION, ms=3, label="smaller group")
    ax.axvline(history.cut + 0.5, color="k", lw=1, ls=":", label=f"cut: {n - history.cut} clusters")
    ax.set(xlabel="merge", ylabel="members before the merge", yscale="log", xlim=(0, n))
    ax.legend(fontsize=9, markerscale=3)
    ax.grid(True)
    return figure


def shown_members(labels: Labels) -> Int[np.ndarray, " m"]:
    """Subcomponents of the largest clusters, cluster by cluster, of each some."""
    order = np.argsort(labels, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(labels))])[labels[order]]
    return order[np.arange(len(order)) - begins < MAX_OF_CLUSTER][:MAX_CELLS]


@STYLE
def heat_map(matrix: Square, labels: Labels, names: Sequence[str], what: str) -> Figure:
    """A symmetric matrix of subcomponents, clusters side by side with a line around each.

    Args:
        matrix: values from 0 to 1, rows ordered by cluster.
        labels: cluster of each row, ascending.
        names: of the rows.
        what: a cell says.
    """
    m = len(matrix)
    figure = Figure(figsize=(8.0, 7.2))
    ax = figure.subplots()
    image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [m]]) - 0.5
    for low, high in itertools.pairwise(bounds):
        if high - low > 1:
            corners = ([low, high, high, low, low], [low, low, high, high, low])
            ax.plot(*corners, color=VERMILLION, lw=0.9, clip_on=False)
    if m <= 40:
        ax.set_xticks(range(m), names, rotation=90, fontsize=7)
        ax.set_yticks(range(m), names, fontsize=7)
    else:
        ax.set(xlabel="subcomponents by cluster", ylabel="subcomponents by cluster")
    ax.spines[:].set_visible(True)
    figure.colorbar(image, ax=ax, label=what, shrink=0.8)
    return figure
