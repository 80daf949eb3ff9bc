"""All that is known of one subcomponent, ready to be shown."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from vpd.analysis.harvest.correlations import TokenStatistics
from vpd.analysis.harvest.reading import Component, Harvest, TokenTable, Window
from vpd.analysis.look.related import Others, Related

# Tokens and pairs that occur less often say little.
FEWEST = 5
# A token that is expected must get this part of the probability where the subcomponent fires.
LEAST = 1e-3
MOST_INPUTS = 64
NOTHING = Others()


@dataclass(frozen=True)
class Piece:
    """One position of a window.

    Attributes:
        text: the token.
        ci: causal importance.
        activation: over the largest absolute one of the subcomponent's windows: −1 to 1.
        here: whether it is the position that the window was cut for.
    """

    text: str
    ci: float
    activation: float
    here: bool


@dataclass(frozen=True)
class Passage:
    """A window as it is shown.

    Attributes:
        kind: ``top`` or ``sampled``.
        ci: at its position.
        activation: at its position, ``‖U_c‖ · x·V_c``.
        pieces: its tokens; empty where the inputs are no tokens.
        inputs: number and value of the entries of the example that are not 0; empty where the inputs are tokens.
    """

    kind: str
    ci: float
    activation: float
    pieces: tuple[Piece, ...]
    inputs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """A token beside a subcomponent.

    Attributes:
        text: the token.
        recall: of the positions where it fires, the part that the token has.
        precision: of the token, the part where it fires.
        lift: precision over density.
    """

    text: str
    recall: float
    precision: float
    lift: float


@dataclass(frozen=True)
class Correlate:
    """Another subcomponent that fires together with this one.

    Attributes:
        site: its matrix.
        index: its number.
        count: at how many positions both fire.
        precision: of the positions where this one fires, the part where it does.
        recall: the other way round.
        jaccard: positions with both over those with any.
        pmi: in nats.
    """

    site: str
    index: int
    count: int
    precision: float
    recall: float
    jaccard: float
    pmi: float

    @property
    def name(self) -> str:
        """``SITE:INDEX``."""
        return f"{self.site}:{self.index}"


@dataclass(frozen=True)
class Evidence:
    """What is shown of a subcomponent.

    Attributes:
        component: its row of the table.
        rank: among all by density, from 1.
        passages: windows, those with the largest activations first.
        read_often: tokens that it fires on most.
        read_specific: tokens with the highest lift.
        expected_often: tokens that are most probable next.
        expected_specific: tokens whose probability it goes with most.
        correlates: by Jaccard.
        related: attributions and cluster.
    """

    component: Component
    rank: int
    passages: tuple[Passage, ...]
    read_often: tuple[Token, ...]
    read_specific: tuple[Token, ...]
    expected_often: tuple[Token, ...]
    expected_specific: tuple[Token, ...]
    correlates: tuple[Correlate, ...]
    related: Related


def by_density(harvest: Harvest) -> Int[np.ndarray, " n"]:
    """All subcomponents, the one that fires most first."""
    return np.argsort(-harvest.firing_counts, kind="stable")


def gather(
    harvest: Harvest,
    place: int,
    rank: int | None = None,
    windows: int | None = None,
    k: int = 8,
    others: Others = NOTHING,
) -> Evidence:
    """What a harvest says of a subcomponent.

    Args:
        harvest: a finished one.
        place: of the subcomponent on the harvest's axis.
        rank: by density, where it is known.
        windows: how many of each kind; None takes all.
        k: how many tokens and correlates.
        others: attributions and clusters, where there are any.
    """
    if rank is None:
        rank = int(np.flatnonzero(by_density(harvest) == place)[0]) + 1
    found = [window for window in harvest.windows(place) if windows is None or window.rank < windows]
    largest = max((abs(x) for window in found for x in window.activations), default=1.0) or 1.0
    passages = tuple(passage(harvest, window, largest) for window in found)
    often, specific, expected, bound = (), (), (), ()
    if harvest.has_tokens:
        read, said = harvest.input_tokens(place), harvest.output_tokens(place)
        n = max(int(harvest.firing_counts[place]), 1)
        often = _tokens(harvest, read, read.statistics.recall, read.masses > 0, k)
        specific = _tokens(harvest, read, read.statistics.lift, read.masses >= FEWEST, k)
        expected = _tokens(harvest, said, said.statistics.recall, said.masses > 0, k)
        bound = _tokens(harvest, said, said.statistics.lift, said.masses >= n * LEAST, k)
    correlates = _correlates(harvest, place, k)
    component = harvest.components[place]
    related = others.of(harvest.axis.at(place), k)
    return Evidence(component, rank, passages, often, specific, expected, bound, correlates, related)


def passage(harvest: Harvest, window: Window, largest: float) -> Passage:
    """A window with its tokens as text; activations are shown relative to the largest."""
    here = window.place
    ci, activation = window.importances[here], window.activations[here]
    if not harvest.has_tokens:
        entries = tuple((i, float(x)) for i, x in enumerate(window.inputs) if x)
        return Passage(window.kind, ci, activation, (), entries[:MOST_INPUTS])
    along = zip(window.inputs, window.importances, window.activations, strict=True)
    pieces = tuple(
        Piece(harvest.vocabulary[int(token)], c, a / largest, i == here) for i, (token, c, a) in enumerate(along)
    )
    return Passage(window.kind, ci, activation, pieces, ())


def _tokens(
    harvest: Harvest, table: TokenTable, by: Float[np.ndarray, " k"], which: Shaped[np.ndarray, " k"], k: int
) -> tuple[Token, ...]:
    """The first k of some tokens by a statistic."""
    s: TokenStatistics = table.statistics
    chosen = np.flatnonzero(which)
    chosen = chosen[np.argsort(-by[chosen], kind="stable")][:k]
    return tuple(
        Token(harvest.vocabulary[int(table.tokens[i])], float(s.recall[i]), float(s.precision[i]), float(s.lift[i]))
        for i in chosen
    )


def _correlates(harvest: Harvest, place: int, k: int) -> tuple[Correlate, ...]:
    pairs = harvest.pairs(place)
    s = pairs.statistics
    enough = np.flatnonzero(pairs.counts >= min(FEWEST, harvest.firing_counts[place]))
    best = enough[np.argsort(-s.jaccard[enough], kind="stable")][:k]
    found: list[Correlate] = []
    for i in best:
        other = harvest.axis.at(int(pairs.others[i]))
        numbers = (float(x[i]) for x in (s.precision, s.recall, s.jaccard, s.pmi))
        found.append(Correlate(other.site, other.index, int(pairs.counts[i]), *numbers))
    return tuple(found)
