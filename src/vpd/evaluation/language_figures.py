"""Pictures of decompositions with many matrices: a panel for every kind of matrix, the layers inside it."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpd.evaluation import figures
from vpd.evaluation.figures import (
    CAPTIONS as FIGURE_CAPTIONS,
)
from vpd.evaluation.figures import (
    STYLE,
    Edges,
    Spectra,
    caption,
    grid_of_panels,
    titled,
)
from vpd.evaluation.plates import MAX_SITES
from vpd.evaluation.site_places import by_kind, place_of

MAX_KINDS = 16
LOWEST = 1e-7  # shares and means below it are drawn on it
LABELLED_LAYERS = 16
CAPTIONS: dict[str, dict[str, str]] = {
    "layer_map": caption(
        "Subcomponents in use, layer by layer",
        "a small part of every matrix per position; a matrix in which nothing is alive has been lost.",
    ),
}
Counts = Mapping[str, Num[np.ndarray, " _bins"]]


def ci_histogram(counts: Counts, edges: Edges) -> Figure:
    """Histograms of lower CI: a panel a matrix, or a kind of matrices where they are too many."""
    return (histograms_by_kind if len(counts) > MAX_SITES else figures.ci_histogram)(counts, edges)


def activation_density(density: Spectra, threshold: float) -> Figure:
    """How often subcomponents fire: a panel a matrix, or a kind of matrices where they are too many."""
    if len(density) <= MAX_SITES:
        return figures.activation_density(density, threshold)
    title = f"{FIGURE_CAPTIONS['activation_density']['title']} (lower CI above {threshold:g})"
    return spectra_by_kind(density, None, title, "fraction of positions", "fire")


def ci_mean_spectrum(mean_ci: Spectra, cut: float) -> Figure:
    """Sorted mean importances: a panel a matrix, or a kind of matrices where they are too many."""
    if len(mean_ci) <= MAX_SITES:
        return figures.ci_mean_spectrum(mean_ci, cut)
    title = FIGURE_CAPTIONS["ci_mean_spectrum"]["title"]
    return spectra_by_kind(mean_ci, cut, title, "mean lower CI", "alive")


@STYLE
def histograms_by_kind(counts: Counts, edges: Edges) -> Figure:
    """Heat maps of lower CI: a row a layer, the colour is the share of a matrix's importances in a bin."""
    kinds = _shown(counts)
    figure, axes = grid_of_panels(len(kinds), 2.2)
    scale = LogNorm(LOWEST, 1.0)
    for ax, (kind, sites) in zip(axes, kinds.items(), strict=True):
        shares = np.stack([counts[site] / max(1.0, float(np.sum(counts[site]))) for site in sites])
        rows = np.arange(len(sites) + 1) - 0.5
        ax.pcolormesh(edges, rows, np.ma.masked_equal(shares, 0.0), norm=scale, cmap="viridis")
        ax.set(title=kind, xlabel="lower CI of a subcomponent at a position")
        _label_layers(ax, sites)
    _bar(figure, axes, scale, "share of importances (white: none)")
    return titled(figure, FIGURE_CAPTIONS["ci_histogram"]["title"], list(kinds), by_kind(counts))


@STYLE
def spectra_by_kind(values: Spectra, cut: float | None, title: str, label: str, word: str) -> Figure:
    """Sorted values of every matrix as one line, coloured by its layer, on a log scale.

    Args:
        values: of every subcomponent by site.
        cut: values above it count, and are named by ``word``; None counts what is above 0.
        title: of the figure.
        label: of the vertical axis.
        word: for what counts.
    """
    kinds = _shown(values)
    figure, axes = grid_of_panels(len(kinds), 2.4)
    scale = Normalize(0, max(place_of(site)[1] or 0 for site in values) or 1)
    colours = mpl.colormaps["viridis"]
    for ax, (kind, sites) in zip(axes, kinds.items(), strict=True):
        for site in sites:
            ranked = np.maximum(np.sort(values[site])[::-1], LOWEST)
            ax.plot(np.arange(1, len(ranked) + 1), ranked, color=colours(scale(place_of(site)[1] or 0)), linewidth=1.2)
        if cut is not None:
            ax.axhline(cut, color="black", linestyle="--", linewidth=1)
        total = sum(len(values[site]) for site in sites)
        counted = sum(int(np.sum(values[site] > (cut or 0.0))) for site in sites)
        ax.set(yscale="log", ylim=(LOWEST / 2, 1.6), xlabel="subcomponent, by rank", ylabel=label)
        ax.set_title(f"{kind}: {counted:,} of {total:,} {word}")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(axis="y")
    if len({place_of(site)[1] for site in values}) > 1:
        _bar(figure, axes, scale, "layer", whole=True)
    note = f" ({LOWEST:g} and below on the bottom)"
    return titled(figure, title, list(kinds), by_kind(values), note)


@STYLE
def layer_map(l0: Mapping[str, float], alive: Mapping[str, float]) -> Figure:
    """Heat maps, layers down and kinds of matrices across: the share in use at a position, and the share alive.

    Args:
        l0: of every matrix, as a part of its C.
        alive: likewise. Matrices outside of the layers are left out, where there are layers.
    """
    given = {"in use at a position (L0 / C)": l0, "alive (mean CI above the cut)": alive}
    inside = any(place_of(site)[1] is not None for site in l0 or alive)
    drawn = {
        title: {site: share for site, share in shares.items() if not inside or place_of(site)[1] is not None}
        for title, shares in given.items()
        if shares
    }
    kinds = list(by_kind(next(iter(drawn.values()))))
    layers = sorted({place_of(site)[1] or 0 for shares in drawn.values() for site in shares})
    figure = Figure(figsize=(9, min(max(0.3 * len(layers), 1.2), 7.0) + 2.2))
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, (title, shares) in zip(axes, drawn.items(), strict=True):
        matrix: Float[np.ndarray, "layers kinds"] = np.full((len(layers), len(kinds)), np.nan)
        for site, share in shares.items():
            kind, layer = place_of(site)
            matrix[layers.index(layer or 0), kinds.index(kind)] = share
        top = float(np.nanmax(matrix)) or 1.0
        image = ax.imshow(np.ma.masked_invalid(matrix), cmap="viridis", vmin=0.0, vmax=top, aspect="auto")
        ax.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", fontsize=8.5)
        at = np.linspace(0, len(layers) - 1, min(len(layers), LABELLED_LAYERS)).round().astype(int)
        ax.set_yticks(at, [str(layers[i]) for i in at])
        ax.set(title=title, ylabel="layer", xlabel="matrix")
        if matrix.size <= 60:
            for (row, column), share in np.ndenumerate(matrix):
                ink = "black" if share > 0.6 * top else "white"
                if np.isfinite(share):
                    ax.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
        figure.colorbar(image, ax=ax, shrink=0.8)
    return titled(figure, CAPTIONS["layer_map"]["title"])


def _shown(sites: Mapping[str, object]) -> dict[str, list[str]]:
    """The first kinds, as many as one figure can hold."""
    return dict(list(by_kind(sites).items())[:MAX_KINDS])


def _label_layers(ax: Axes, sites: Sequence[str]) -> None:
    """Layers down, the first on top; a matrix outside of the layers has none."""
    ax.invert_yaxis()
    numbers = [place_of(site)[1] for site in sites]
    if numbers == [None]:
        ax.set_yticks([])
        ax.set_ylabel("no layer")
        return
    at = np.linspace(0, len(sites) - 1, min(len(sites), 6)).round().astype(int)
    ax.set_yticks(at, [str(numbers[i]) for i in at])
    ax.set_ylabel("layer")


def _bar(figure: Figure, axes: Sequence[Axes], scale: Normalize, label: str, whole: bool = False) -> None:
    """One scale for all panels, at the top, where a reader of a tall figure starts."""
    shrink = min(1.0, 4.0 / figure.get_figheight())
    mapped = ScalarMappable(norm=scale, cmap="viridis")
    ticks = MaxNLocator(8, integer=True) if whole else None
    figure.colorbar(mapped, ax=list(axes), label=label, shrink=shrink, aspect=30, anchor=(0.0, 1.0), ticks=ticks)
