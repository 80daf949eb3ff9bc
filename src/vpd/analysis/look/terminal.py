"""One subcomponent in a terminal: shaded windows, tokens, correlates."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpd.analysis.look.evidence import Correlate, Evidence, Passage, Token
from vpd.analysis.look.related import Related
from vpd.analysis.look.words import visible

# Background where the importance is 1, text where the activation is largest: positive and negative.
CI_COLOUR, UP, DOWN = (122, 90, 10), (120, 180, 255), (255, 150, 120)
PLAIN = (190, 190, 190)
# Below these a position is not shaded.
FAINT = 0.02
KINDS = {"top": "largest activations", "sampled": "sampled from where it fires"}


def print_evidence(console: Console, evidence: Evidence, threshold: float) -> None:
    """What is known of a subcomponent."""
    one = evidence.component
    console.print(Text(one.name, style="bold"))
    console.print(
        f"fires at {one.firing_count:,} positions (density {one.density:.3g}, CI > {threshold:g}; rank "
        f"{evidence.rank:,} by density), mean CI {one.mean_importance:.3g}, norm {one.norm:.3g}"
    )
    if not one.firing_count:
        console.print("It never fires in this harvest, so there is nothing more to show.")
        return
    for kind, title in KINDS.items():
        some = [passage for passage in evidence.passages if passage.kind == kind]
        if some:
            console.print(Text(f"\n{title}  (CI, activation)", style="bold"))
        for passage in some:
            console.print(shaded(passage), soft_wrap=False)
    for title, often, specific in (
        ("reads", evidence.read_often, evidence.read_specific),
        ("next token expected by the model", evidence.expected_often, evidence.expected_specific),
    ):
        if often:
            console.print(_token_table(title, often, specific))
    if evidence.correlates:
        console.print(_correlate_table(evidence.correlates))
    _print_related(console, evidence.related)


def _print_related(console: Console, related: Related) -> None:
    if related.sources or related.targets:
        table = Table(title="\nattributions", title_justify="left", title_style="bold")
        for column in ("sources", "signed", "", "targets", "signed"):
            table.add_column(column, justify="right" if column == "signed" else "left")
        for i in range(max(len(related.sources), len(related.targets))):
            left, right = (
                (some[i][0], f"{some[i][1]:+.3g}") if i < len(some) else ("", "")
                for some in (related.sources, related.targets)
            )
            table.add_row(*(Text(cell) for cell in (*left, "", *right)))
        console.print(table)
    if related.cluster is not None:
        more = f" and {related.more} more" if related.more else ""
        with_whom = ", ".join(map(str, related.members)) or "nobody else"
        console.print(Text(f"\ncluster {related.cluster}", style="bold"), Text(f"with {with_whom}{more}"))


def shaded(passage: Passage) -> Text:
    """A window: background is the causal importance, colour the activation, the position itself underlined."""
    line = Text(f"{passage.ci:4.2f} {passage.activation:+8.3g}  ")
    for piece in passage.pieces:
        text = piece.text.replace("\n", "⏎")
        style = f"rgb({_mix(PLAIN, UP if piece.activation > 0 else DOWN, abs(piece.activation))})"
        if piece.ci >= FAINT:
            style += f" on rgb({_mix((0, 0, 0), CI_COLOUR, piece.ci)})"
        line.append(text, style + (" bold underline" if piece.here else ""))
    for i, (number, value) in enumerate(passage.inputs):
        line.append(f"{', ' if i else ''}x{number} = {value:.3g}")
    if not passage.pieces and not passage.inputs:
        line.append("(no entry of the input is kept, or all are 0)", "dim")
    return line


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], part: float) -> str:
    part = min(max(part, 0.0), 1.0)
    return ",".join(str(round(a + (b - a) * part)) for a, b in zip(low, high, strict=True))


def _token_table(title: str, often: Sequence[Token], specific: Sequence[Token]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold")
    for column in ("most often", "share", "", "most specific", "share", "lift"):
        table.add_column(column, justify="left" if column.startswith("most") else "right")
    for i in range(max(len(often), len(specific))):
        left = (visible(often[i].text), f"{often[i].recall:.3f}") if i < len(often) else ("", "")
        right = ("", "", "")
        if i < len(specific):
            right = (visible(specific[i].text), f"{specific[i].recall:.3f}", f"{specific[i].lift:.3g}")
        table.add_row(*(Text(cell) for cell in (*left, "", *right)))
    return table


def _correlate_table(correlates: Sequence[Correlate]) -> Table:
    table = Table(title="\nfires together with", title_justify="left", title_style="bold")
    for column in ("subcomponent", "count", "precision", "recall", "Jaccard", "PMI"):
        table.add_column(column, justify="left" if column == "subcomponent" else "right")
    for other in correlates:
        numbers = (f"{x:.3f}" for x in (other.precision, other.recall, other.jaccard, other.pmi))
        table.add_row(Text(other.name), f"{other.count:,}", *numbers)
    return table
