"""Attribution graphs and tables as pictures: matplotlib figures out, no files."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from vpd.analysis.attribution.graph import Edge, Graph, Node
from vpd.analysis.prompts import Prompt
from vpd.evaluation.figures import BLUE, GREY, STYLE, VERMILLION

# So many edges, the strongest, are drawn; so many nodes at one site and position.
MAX_EDGES, MAX_IN_CELL = 150, 6
_CELL, _ROW = 0.42, 0.62

Places = dict[Node, tuple[float, float]]


@STYLE
def graph_figure(graph: Graph, prompt: Prompt, text: Callable[[Node], str], sites: Sequence[str]) -> Figure:
    """A graph in layers: sites upwards in the order of the forward pass, positions to the right.

    Args:
        graph: of the prompt.
        prompt: whose words are written under the positions.
        text: what is written into a node.
        sites: all decomposed ones in order.
    """
    nodes = _shown(graph)
    rows = _rows(nodes, sites)
    columns = sorted({node.position for node in nodes})
    places, edges_of_columns = _places(graph, nodes, rows, columns)
    width = max(edges_of_columns[-1], 4) * _CELL
    figure = Figure(figsize=(max(5.5, width + 2.4), max(2.6, _ROW * len(rows) + 1.5)))
    axes = figure.add_subplot()
    for row in range(len(rows)):
        axes.axhline(row, color="#eeeeee", zorder=0)
    for x in edges_of_columns[1:-1]:
        axes.axvline(x, color="#eeeeee", zorder=0)
    kept = [edge for edge in graph.edges if edge.source in places and edge.target in places][:MAX_EDGES]
    for edge in reversed(kept):
        _draw_edge(axes, edge, places, kept[0].strength)
    for node, (x, y) in places.items():
        _draw_node(axes, x, y, text(node), graph.influence[node])
    axes.set_yticks(range(len(rows)), rows)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges_of_columns)]
    words = [_word(prompt.words[position]) for position in columns]
    axes.set_xticks(middles, [f"{word}\n{position}" for word, position in zip(words, columns, strict=True)])
    axes.set_xlabel("token and position" if prompt.has_tokens else "input")
    axes.set_xlim(edges_of_columns[0], edges_of_columns[-1])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    lines = [Line2D([], [], color=colour, linewidth=2) for colour in (BLUE, VERMILLION)]
    figure.legend(lines, ["raises its target", "lowers it"], loc="outside upper right", ncols=2, fontsize=8)
    left_out = len(graph.edges) - len(kept)
    title = f"{len(graph.influence)} nodes, {len(graph.edges)} edges"
    axes.set_title(f"{title} ({left_out} weaker ones not drawn)" if left_out else title, loc="left", fontsize=9)
    return figure


def _shown(graph: Graph) -> list[Node]:
    """The nodes that are drawn: of each site and position those of most influence."""
    cells: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in sorted(graph.influence, key=lambda node: -graph.influence[node]):
        cells[node.site, node.position].append(node)
    return [node for cell in cells.values() for node in cell[:MAX_IN_CELL]]


def _rows(nodes: Sequence[Node], sites: Sequence[str]) -> list[str]:
    """Sites from the bottom: ends of the input, decomposed ones, the output."""
    there = {node.site for node in nodes}
    ends = sorted(there - set(sites) - {"output"})
    return [*ends, *(site for site in sites if site in there), *(["output"] if "output" in there else [])]


def _places(
    graph: Graph, nodes: Sequence[Node], rows: Sequence[str], columns: Sequence[int]
) -> tuple[Places, list[float]]:
    """Where every node is, and where columns begin and end."""
    cells: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in sorted(nodes):
        cells[node.site, node.position].append(node)
    widths = [max(len(cells[row, column]) for row in rows) for column in columns]
    starts = np.concatenate([[0.0], np.cumsum([max(w, 1) + 0.6 for w in widths])])
    places: Places = {}
    for (site, position), cell in cells.items():
        i = columns.index(position)
        middle = (starts[i] + starts[i + 1]) / 2
        for k, node in enumerate(cell):
            places[node] = (float(middle + k - (len(cell) - 1) / 2), float(rows.index(site)))
    return places, [float(x) for x in starts]


def _draw_edge(axes: Axes, edge: Edge, places: Places, strongest: float) -> None:
    weight = edge.strength / strongest
    axes.add_patch(
        FancyArrowPatch(
            places[edge.source],
            places[edge.target],
            arrowstyle="-",
            connectionstyle="arc3,rad=0.06",
            color=BLUE if edge.value > 0 else VERMILLION,
            linewidth=0.4 + 3.2 * weight**0.5,
            alpha=0.25 + 0.6 * weight**0.5,
            shrinkA=6,
            shrinkB=6,
            zorder=1,
        )
    )


def _draw_node(axes: Axes, x: float, y: float, text: str, influence: float) -> None:
    shade = 1 - 0.35 * min(1.0, influence) ** 0.5
    box = {"boxstyle": "round,pad=0.22", "facecolor": (shade, shade, 1.0), "edgecolor": GREY, "linewidth": 0.6}
    axes.text(x, y, _word(text), ha="center", va="center", fontsize=7, bbox=box, zorder=2)


def _word(word: str) -> str:
    """A token that can be read: white space is shown, dollars are no mathematics."""
    plain = word.replace("\n", "↵").replace("$", r"\$")
    return plain if plain.strip() else "␣" * max(1, len(plain))


@STYLE
def strengths_figure(table: Float[np.ndarray, "n m"], sources: Sequence[str], targets: Sequence[str]) -> Figure:
    """Which sites feed which: rows write, columns read; each column as parts of its whole.

    Args:
        table: strengths between sites.
        sources: names of the rows.
        targets: names of the columns.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = np.nan_to_num(table / table.sum(0))
    size = (2.6 + 0.26 * len(targets), 2.2 + 0.2 * len(sources))
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(sources)), sources, fontsize=7)
    axes.set_xticks(range(len(targets)), targets, fontsize=7, rotation=90)
    axes.set_ylabel("source")
    axes.set_xlabel("target")
    figure.colorbar(image, ax=axes, label="part of what flows into the target", shrink=0.8)
    return figure
