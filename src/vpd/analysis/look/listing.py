"""A few subcomponents with their windows as Markdown, chosen by their rank and not by hand."""

import numpy as np
from jaxtyping import Int

from vpd.analysis.harvest.reading import Harvest
from vpd.analysis.look.evidence import Evidence, Passage, by_density, gather
from vpd.analysis.look.words import visible

# Those that fire less often have no windows to compare; the rest of all firings is of very many that hardly ever fire.
FEWEST, SHARE = 20, 0.99
WINDOWS = 4
BEFORE, AFTER = 6, 2


def evenly_ranked(harvest: Harvest, k: int) -> Int[np.ndarray, " _k"]:
    """The middles of k equal parts, in order of density, of those that make up 99 % of all firings."""
    order = by_density(harvest)
    counts = harvest.firing_counts[order]
    before = np.cumsum(counts) - counts
    able = order[(before < SHARE * counts.sum()) & (counts >= FEWEST)]
    k = min(k, len(able))
    return able[((2 * np.arange(k) + 1) * len(able)) // (2 * k)] if k else able


def markdown(harvest: Harvest, k: int) -> str:
    """A table of k subcomponents: rank, density, what they read and what is expected, sampled windows."""
    lines = [
        "| rank | subcomponent | density | reads | model expects | windows |",
        "|---|---|---|---|---|---|",
    ]
    for place in evenly_ranked(harvest, k):
        e = gather(harvest, int(place), windows=WINDOWS, k=4)
        windows = "<br>".join(_text(p) for p in e.passages if p.kind == "sampled")
        cells = f"{e.rank:,}", f"`{e.component.name}`", f"{e.component.density:.2g}", *_tokens(e), windows
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _tokens(e: Evidence) -> tuple[str, str]:
    read, expected = (
        " ".join(_code(visible(token.text)) for token in some) for some in (e.read_often, e.expected_specific)
    )
    return read, expected


def _text(passage: Passage) -> str:
    """A window around its position, which is bold."""
    if not passage.pieces:
        return ", ".join(f"x{i} = {value:.3g}" for i, value in passage.inputs)
    here = next(i for i, piece in enumerate(passage.pieces) if piece.here)
    parts = (
        passage.pieces[max(0, here - BEFORE) : here],
        passage.pieces[here : here + 1],
        passage.pieces[here + 1 :][:AFTER],
    )
    before, own, after = ("".join(visible(piece.text) for piece in part) for part in parts)
    return f"{_code(before)} **{_code(own)}** {_code(after)}".strip()


def _code(text: str) -> str:
    """As code in a cell of a table; the characters that would end either are replaced by others that look like them."""
    return "" if not text else f"`{text.replace('`', 'ˋ').replace('|', '∣')}`"
