"""Pictures of attention through subcomponents: numpy arrays in, matplotlib figures out."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from vpd.analysis.attention.heads import Fractions, Overlap, heads_spanned
from vpd.analysis.attention.interactions import Pairs
from vpd.analysis.attention.layers import WORDS, Role
from vpd.analysis.attention.scores import ScoreParts
from vpd.evaluation.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILLION, grid_of_panels, titled

FAINT = 0.02  # of the largest: paler than a colour
MOST_HEADS, MOST_BARS, MOST_CELLS, MOST_LINES, MOST_TOKENS = 8, 48, 24, 6, 40
_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY, "#8C6D31")
CAPTIONS: Mapping[str, str] = {
    "offsets": "Static interaction of the strongest pairs of query and key subcomponents with how far back the key "
    "lies, at typical activations; black: the sum of all pairs at their mean activations, which is there whatever the "
    "tokens are. A line that peaks at one offset attends by position; a flat one by content.",
    "pairs": "The same for every pair of the largest subcomponents, at the offset where each is strongest. A row or "
    "column that is dark throughout is a subcomponent that many others meet.",
    "spans": "Squared length of what each subcomponent writes into (outputs: reads from) each head, in parts of the "
    "whole, the largest on data first. One colour: it belongs to one head.",
    "values": "How far each output subcomponent reads each value subcomponent through a head that attends to one "
    "position: length of what is written into the stream, at typical activations.",
    "overlap": "Mean squared cosine of the principal angles between the subspaces that two heads read from, write to, "
    "and between what one writes and another reads. Heads that share their keys and values read the same subspace.",
    "prompt": "The masked model's attention on the prompt, head by head, and the pairs of subcomponents that shape it "
    "most: what each adds to the score of a key (column) for a query (row).",
}


def shown_heads(strength: Float[np.ndarray, " heads"]) -> list[int]:
    """The strongest heads, in their order, where there are too many to draw."""
    return sorted(int(h) for h in np.argsort(-strength, kind="stable")[:MOST_HEADS])


@STYLE
def offset_lines(layer: str, pairs: Pairs) -> Figure:
    """A panel for each head, a line for each of its strongest pairs."""
    heads = shown_heads(np.abs(pairs.typical).max(axis=(1, 2, 3)))
    figure, axes = grid_of_panels(len(heads), 3.3)
    marker = "o" if len(pairs.offsets) <= 40 else ""
    for ax, head in zip(axes, heads, strict=True):
        best = np.abs(pairs.typical[head]).max(axis=-1)
        order = np.argsort(-best, axis=None, kind="stable")[:MOST_LINES]
        places = zip(*np.unravel_index(order, best.shape), strict=True)
        for colour, (i, j) in zip(_COLOURS, places, strict=False):
            label = f"q:{pairs.first[i]} k:{pairs.second[j]}"
            ax.plot(pairs.offsets, pairs.typical[head, i, j], color=colour, lw=1.3, marker=marker, ms=2.5, label=label)
        if pairs.together is not None:
            ax.plot(pairs.offsets, pairs.together[head], color="black", lw=1.6, label="all, at their means")
        ax.axhline(0.0, color=GREY, lw=0.6)
        ax.set(xlabel="positions back", ylabel="score", title=f"{layer}, head {head}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=1.4)
        ax.grid(True, axis="y")
    return titled(figure, "Pairs of query and key subcomponents by offset", note=_note(pairs.typical.shape[0]))


@STYLE
def pair_map(layer: str, pairs: Pairs, words: tuple[str, str], title: str, label: str) -> Figure:
    """A panel for each head: first subcomponents down, second ones across, at each pair's strongest offset."""
    strength = np.abs(pairs.typical)
    place = strength.argmax(axis=-1)
    values = np.take_along_axis(pairs.typical, place[..., None], axis=-1)[..., 0]
    heads = shown_heads(np.abs(values).max(axis=(1, 2)))
    rows, columns = (_largest(np.abs(values).max(axis=(0, axis))) for axis in (2, 1))
    limit = float(np.abs(values).max())
    height = min(max(0.16 * len(rows), 1.6), 4.2) + 0.9
    figure, axes = grid_of_panels(len(heads), height)
    image = None
    for ax, head in zip(axes, heads, strict=True):
        image = _diverging(ax, values[head][np.ix_(rows, columns)], limit)
        _ticks(ax, [str(c) for c in pairs.second[columns]], [str(c) for c in pairs.first[rows]])
        ax.set(xlabel=words[1], ylabel=words[0], title=f"{layer}, head {head}")
    assert image is not None
    _bar(figure, image, axes, label)
    return titled(figure, title, note=_note(len(values)))


@STYLE
def span_bars(layer: str, orders: Mapping[Role, Sequence[int]], found: Mapping[Role, Fractions]) -> Figure:
    """A panel for each projection, a bar for each subcomponent in parts by head.

    Args:
        layer: its path.
        orders: subcomponents to show, by role.
        found: the fractions of all.
    """
    figure, axes = grid_of_panels(len(found), 2.4)
    for ax, (role, fractions) in zip(axes, found.items(), strict=True):
        order = orders[role]
        shown = list(order[:MOST_BARS])
        bottom = np.zeros(len(shown))
        for head in range(fractions.shape[1]):
            part = fractions[shown, head]
            ax.bar(range(len(shown)), part, bottom=bottom, width=0.9, color=_head_colour(head), label=f"head {head}")
            bottom += part
        mean = float(np.mean(heads_spanned(fractions)[shown])) if shown else 0.0
        few = "" if len(shown) == len(order) else f", largest {len(shown)} of {len(order)}"
        ax.set(ylim=(0, 1), ylabel="part", title=f"{WORDS[role]}: {mean:.1f} heads on average{few}")
        step = -(-len(shown) // 16) or 1
        ax.set_xticks(range(0, len(shown), step), [str(c) for c in shown[::step]], fontsize=7.5, rotation=90)
        ax.set_xlabel("subcomponent")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda both: len(both[1]))
    if len(labels) <= 16:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), fontsize=8.5)
    return titled(figure, f"Heads that the subcomponents of {layer} span")


def _head_colour(head: int) -> str:
    return _COLOURS[head % len(_COLOURS)]


@STYLE
def overlap_maps(
    names: Sequence[str],
    overlap: Mapping[str, Mapping[Overlap, Float[np.ndarray, "heads heads"]]],
    chance: float,
) -> Figure:
    """Three heat maps in a row for each source of the subspaces.

    Args:
        names: of the heads.
        overlap: by source (weights, live subcomponents), then by kind.
        chance: overlap of two random subspaces of the size of heads.
    """
    kinds: Mapping[Overlap, tuple[str, str, str]] = {
        "read": ("reads and reads", "head", "head"),
        "write": ("writes and writes", "head", "head"),
        "write_read": ("writes and reads", "read by head", "written by head"),
    }
    n = len(names)
    figure = Figure(figsize=(9, 3.0 * len(overlap) + 0.6))
    axes = figure.subplots(len(overlap), 3, squeeze=False)
    image = None
    shared = names[0].rpartition(".")[0].rpartition(".")[0]
    short = [name.removeprefix(f"{shared}.") for name in names]
    at = range(0, n, -(-n // 24))
    for row, (source, maps) in zip(axes, overlap.items(), strict=True):
        for ax, (kind, (word, x, y)) in zip(row, kinds.items(), strict=True):
            image = ax.imshow(maps[kind], cmap="viridis", vmin=0.0, vmax=1.0, interpolation="nearest")
            ax.set_xticks(at, [short[i] for i in at], fontsize=6.5, rotation=90)
            ax.set_yticks(at, [short[i] for i in at], fontsize=6.5)
            ax.spines[:].set_visible(True)
            ax.set(title=f"{word}\n{source}", xlabel=x, ylabel=y if kind != "write" else "")
    assert image is not None
    _bar(figure, image, list(axes.flat), f"overlap (by chance {chance:.2f})")
    return titled(figure, "Overlap of what heads read and write")


@STYLE
def prompt_maps(found: ScoreParts, tokens: Sequence[str], top: int) -> Figure:
    """A row for each head: its attention, then what its strongest pairs add to the scores."""
    pattern = found.summary.pattern
    heads = shown_heads(pattern.max(axis=(1, 2)))
    pairs = {head: found.summary.strongest(top, head) for head in heads}
    panels = {head: [found.contribution(i, j)[head] for i, j in pairs[head]] for head in heads}
    seen = np.tril(np.ones((len(tokens), len(tokens)), bool))
    limit = max(float(np.abs(x[seen]).max()) for own in panels.values() for x in own)
    figure = Figure(figsize=(3.0 * (top + 1), 2.95 * len(heads) + 0.8))
    axes = figure.subplots(len(heads), top + 1, squeeze=False)
    last = None
    for row, head in zip(axes, heads, strict=True):
        weights = np.where(seen, found.attention[head], np.nan)
        first = row[0].imshow(weights, cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest")
        _tokens(row[0], tokens, True)
        row[0].set_title(f"{found.layer.path}, head {head}\nattention", fontsize=9)
        figure.colorbar(first, ax=row[0], shrink=0.6, aspect=18)
        for ax, values, (i, j) in zip(row[1:], panels[head], pairs[head], strict=False):
            last = _diverging(ax, np.where(seen, values, np.nan), limit, True)
            _tokens(ax, tokens, False)
            names = (found.queries.labels[i], found.keys.labels[j])
            ax.set_title(f"q {_short(names[0])}\nk {_short(names[1])}", fontsize=9)
        for ax in row[1 + len(pairs[head]) :]:
            ax.remove()
    if last is not None:
        _bar(figure, last, [ax for row in axes for ax in row[1:] if ax.figure is not None], "added to the score")
    return titled(figure, f"Attention of {found.layer.path} on the prompt", note=_note(len(pattern)))


def _short(label: str) -> str:
    """``q_proj:3`` for a subcomponent."""
    return label.rpartition(".")[2]


def _tokens(ax: Axes, tokens: Sequence[str], beside: bool) -> None:
    step = max(1, math.ceil(len(tokens) / MOST_TOKENS))
    at, size = range(0, len(tokens), step), 7.0 if len(tokens) <= 24 else 5.0
    ax.set_xticks(at, [tokens[i] for i in at], fontsize=size, rotation=90)
    ax.set_yticks(at if beside else [], [tokens[i] for i in at] if beside else [], fontsize=size)
    ax.spines[:].set_visible(True)


def _largest(strength: Float[np.ndarray, " n"]) -> list[int]:
    """Those that are seen beside the largest, in falling order."""
    order = np.argsort(-strength, kind="stable")[:MOST_CELLS]
    return [int(i) for i in order if strength[i] >= FAINT * strength[order[0]]]


def _diverging(ax: Axes, values: np.ndarray, limit: float, square: bool = False) -> AxesImage:
    """Red adds, blue takes away, white is 0; cells without a value are grey."""
    ax.set_facecolor("#ececec")
    limit = limit or 1.0
    aspect = "equal" if square else "auto"
    return ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect)


def _ticks(ax: Axes, across: Sequence[str], down: Sequence[str]) -> None:
    ax.set_xticks(range(len(across)), across, fontsize=7, rotation=90)
    ax.set_yticks(range(len(down)), down, fontsize=7)
    ax.spines[:].set_visible(True)


def _bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    figure.colorbar(image, ax=axes, label=label, shrink=min(1.0, 3.2 / figure.get_figheight()), aspect=24)


def _note(heads: int) -> str:
    return "" if heads <= MOST_HEADS else f" (strongest {MOST_HEADS} of {heads} heads)"
