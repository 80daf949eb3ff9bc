"""Subsets of a pruning as a picture: what each does, and where its members are."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vpd.analysis.pruning.prune import AS_MASKS, FREE, MEASURED_ROWS, ROUNDED, SUBSET, Pruning
from vpd.evaluation.figures import BLUE, GREY, ORANGE, STYLE, VERMILLION

_COLOURS = {SUBSET: BLUE, AS_MASKS: VERMILLION, ROUNDED: ORANGE, FREE: GREY}
_SITUATIONS = {
    "alone": "by itself",
    "stochastic": "random\non the rest",
    "adversarial": "adversary\non the rest",
    "worst": f"its worst\nof {MEASURED_ROWS}",
    "without": "target\nwithout it",
}


@STYLE
def pruning_figure(found: Pruning) -> Figure:
    """Left what subsets do (lower is nearer to the target, but for the last group), right how many of each site."""
    sites = list(found.subsets[SUBSET].masks)
    figure = Figure(figsize=(11.0, max(3.4, 1.0 + 0.26 * len(sites))))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1.0))
    _does(left, found)
    _where(right, found, sites)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9)
    return figure


def _does(axes: Axes, found: Pruning) -> None:
    for i, (name, subset) in enumerate(found.subsets.items()):
        values = [getattr(subset.kept, situation)[found.measure] for situation in _SITUATIONS]
        places = np.arange(len(values)) + 0.2 * (i - 1.5)
        axes.bar(places, values, 0.18, color=_COLOURS[name], label=f"{name} ({subset.size})")
    if found.target_ce is not None and found.measure == "ce":
        axes.axhline(found.target_ce, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xticks(range(len(_SITUATIONS)), list(_SITUATIONS.values()))
    kind = "nats" if found.labels is not None else "squared error"
    axes.set_ylabel("cross-entropy, nats" if found.measure == "ce" else f"divergence from the target, {kind}")
    axes.grid(axis="y")


def _where(axes: Axes, found: Pruning, sites: list[str]) -> None:
    for name in (ROUNDED, SUBSET, AS_MASKS):
        counts = [int((found.subsets[name].masks[site] > 0).sum()) for site in sites]
        height = {ROUNDED: 0.8, SUBSET: 0.56, AS_MASKS: 0.3}[name]
        axes.barh(range(len(sites)), counts, height, color=_COLOURS[name])
    axes.set_yticks(range(len(sites)), sites, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("members: subcomponents × positions")
    axes.set_xscale("symlog", linthresh=1)
    axes.grid(axis="x")
