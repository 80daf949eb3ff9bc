"""The attribution graph of one prompt: what reaches its output, from node to node, back to the embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vpd.analysis.attribution.effects import INPUT, OUTPUT, Effects, Facts, Wanted
from vpd.analysis.prompts import Prompt
from vpd.analysis.run import Run
from vpd.progress import Watch, unwatched

# Targets of one backward program.
CHUNK = 16
# Above it an importance makes a node.
IMPORTANT = 0.1

Members = Mapping[str, Bool[np.ndarray, "*leading C"]]


@dataclass(frozen=True, order=True)
class Node:
    """A subcomponent, or an end of the network, at one position.

    Attributes:
        site: its matrix; an embedding that is not decomposed, ``input`` or ``output``.
        index: of the subcomponent, the token or the feature.
        position: in the prompt; 0 where there is no sequence.
    """

    site: str
    index: int
    position: int

    @property
    def name(self) -> str:
        """``SITE:INDEX``."""
        return f"{self.site}:{self.index}"


@dataclass(frozen=True)
class Edge:
    """A direct effect of one node on another.

    Attributes:
        source: where it comes from.
        target: where it goes.
        value: the attribution, in units of the target's activation ``‖U_c‖ · x·V_c``, at the output of logits.
        share: the same as a part of all that flows into the target, ``Σ |value|`` over all sources.
        strength: ``|share|`` times the influence of the target: what part of the output runs through this edge.
    """

    source: Node
    target: Node
    value: float
    share: float
    strength: float


@dataclass(frozen=True)
class Graph:
    """Nodes that reach the output along edges above a threshold.

    Attributes:
        influence: of every node: 1 of all outputs together, of others the strengths of their edges.
        activation: of every node; of an end 1, of an output its logit or value.
        ci: of every node; of an end 1.
        edges: the strongest first.
    """

    influence: dict[Node, float] = field(default_factory=dict)
    activation: dict[Node, float] = field(default_factory=dict)
    ci: dict[Node, float] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)


def prompt_graph(
    run: Run,
    prompt: Prompt,
    positions: Sequence[int],
    threshold: float = 0.01,
    members: Members | None = None,
    watch: Watch = unwatched,
) -> Graph:
    """Walk back from the output: of every node reached, the edges into it that carry enough.

    An edge is kept where its strength is above the threshold, so what is kept grows with what it does to the output and
    not with the length of the prompt.

    Args:
        run: opened.
        prompt: the input.
        positions: whose outputs are asked for: of logits the likeliest token's, of a vector all entries that are not 0.
        threshold: smallest strength of an edge.
        members: which subcomponents are nodes, ``{site: [1, T, C]}``; those with lower CI above 0.1 by default.
        watch: of the number of sites, called with how many are done.
    """
    effects = Effects(run, by_position=True)
    facts = effects.facts(prompt.batch)
    nodes = members or {site: np.asarray(ci) > IMPORTANT for site, ci in facts.ci.items()}
    graph = Graph()
    for node, value in _outputs(facts, positions):
        graph.influence[node], graph.activation[node], graph.ci[node] = 0.0, value, 1.0
    for node in graph.influence:
        graph.influence[node] = 1.0 / len(graph.influence)
    order = [OUTPUT, *reversed(run.sites)]
    with watch(len(order)) as show:
        for done, site in enumerate(order, start=1):
            targets = sorted(node for node in graph.influence if node.site == site)
            for first in range(0, len(targets), CHUNK):
                chunk = targets[first : first + CHUNK]
                found = _effects_on(effects, site, prompt, facts, chunk)
                for row, target in enumerate(chunk):
                    own = {source: x[row] for source, x in found.items()}
                    _add_edges(graph, target, own, nodes, facts, threshold)
            show(done)
    graph.edges.sort(key=lambda edge: -edge.strength)
    return graph


def _outputs(facts: Facts, positions: Sequence[int]) -> list[tuple[Node, float]]:
    outputs = np.asarray(facts.outputs)
    if facts.predicted is None:
        return [(Node(OUTPUT, int(i), 0), float(outputs[0, i])) for i in np.flatnonzero(outputs[0])]
    tokens = np.asarray(facts.predicted)[0]
    return [(Node(OUTPUT, int(tokens[t]), t), float(outputs[0, t])) for t in positions]


def _effects_on(
    effects: Effects, site: str, prompt: Prompt, facts: Facts, targets: Sequence[Node]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """Attributions of everything to these targets, ``{site: [n, T, C]}`` without the axis of the batch."""
    fill = [targets[i % len(targets)] for i in range(CHUNK)]
    index, at = (jnp.asarray([getattr(node, key) for node in fill]) for key in ("index", "position"))
    found, _ = effects.of(site, prompt.batch, facts, Wanted(index, at))
    return {source: np.asarray(x)[: len(targets), 0] for source, x in found.items()}


def _add_edges(
    graph: Graph,
    target: Node,
    found: Mapping[str, Float[np.ndarray, "..."]],
    nodes: Members,
    facts: Facts,
    threshold: float,
) -> None:
    total = sum(float(np.abs(x).sum()) for x in found.values())
    if total == 0:
        return
    for site, values in found.items():
        strength = np.abs(values) / total * graph.influence[target]
        kept = strength >= threshold
        if site in nodes:
            kept &= np.asarray(nodes[site])[0]
        for row in np.argwhere(kept):
            place = tuple(int(i) for i in row)
            source = _source(site, place, facts)
            value = float(values[place])
            graph.edges.append(Edge(source, target, value, value / total, float(strength[place])))
            graph.influence[source] = graph.influence.get(source, 0.0) + float(strength[place])
            is_end = site not in facts.ci
            graph.ci[source] = 1.0 if is_end else float(facts.ci[site][(0, *place)])
            graph.activation[source] = 1.0 if is_end else float(facts.activations[site][(0, *place)])


def _source(site: str, where: tuple[int, ...], facts: Facts) -> Node:
    if site == INPUT:
        return Node(INPUT, where[-1], where[0] if len(where) > 1 else 0)
    if site in facts.rows:
        return Node(site, int(facts.rows[site][0, where[0]]), where[0])
    return Node(site, where[-1], where[0] if len(where) > 1 else 0)
