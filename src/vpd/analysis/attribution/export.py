"""Attributions as JSON, with the text of tokens and the labels of subcomponents where there are any."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from vpd.analysis.artefacts import new_artefact
from vpd.analysis.attribution.dataset import site_strengths
from vpd.analysis.attribution.effects import OUTPUT
from vpd.analysis.attribution.figures import graph_figure, strengths_figure
from vpd.analysis.attribution.graph import Graph, Node
from vpd.analysis.attribution.store import DATASET, PROMPT, SCHEMA_VERSION, Attributions, Ranked, write_arrays
from vpd.analysis.labels import read_labels
from vpd.analysis.prompts import Prompt
from vpd.analysis.run import Run
from vpd.evaluation.figures import png
from vpd.run_directory import finite

GRAPH, PICTURE, TOP, STRENGTHS = "graph.json", "graph.png", "attributions.json", "sites.png"


class Names:
    """What is said of a node beside its name: its label, and of a token its text."""

    def __init__(self, run: Run) -> None:
        """Reads the labels and, of a language model, the tokenizer."""
        self._labels = read_labels(run.path)
        self._tokenizer = run.tokenizer if run.config.target_kind == "lm" else None
        matrices = run.experiment.target.matrices()
        vocab = matrices["lm_head"][1] if "lm_head" in matrices else None
        lookups = {name for name, (rows, _, kind) in matrices.items() if kind == "embedding" and rows == vocab}
        self._of_tokens = (lookups | {OUTPUT}) - set(run.sites)

    def of(self, name: str) -> dict[str, object]:
        """``{"name", "label"?, "text"?}``."""
        site, _, index = name.rpartition(":")
        found: dict[str, object] = {"name": name}
        if name in self._labels:
            found["label"] = self._labels[name]
        if self._tokenizer is not None and site in self._of_tokens:
            found["text"] = self._tokenizer.decode([int(index)])
        return found

    def text(self, node: Node) -> str:
        """What a picture writes into a node."""
        text = self.of(node.name).get("text")
        return str(node.index) if text is None else str(text).strip() or repr(text)


def graph_document(graph: Graph, prompt: Prompt, names: Names) -> dict[str, object]:
    """A graph as one JSON object: nodes by site and position, edges with signed weights, the strongest first."""
    nodes = sorted(graph.influence)
    number = {node: i for i, node in enumerate(nodes)}
    return {
        "prompt": {**prompt.given, "words": list(prompt.words)},
        "nodes": [
            {
                **names.of(node.name),
                "site": node.site,
                "index": node.index,
                "position": node.position,
                "word": prompt.words[node.position],
                "ci": graph.ci[node],
                "activation": graph.activation[node],
                "influence": graph.influence[node],
            }
            for node in nodes
        ],
        "edges": [
            {
                "source": number[edge.source],
                "target": number[edge.target],
                "value": edge.value,
                "share": edge.share,
                "strength": edge.strength,
            }
            for edge in graph.edges
        ],
    }


def save_graph(path: Path, run: Run, graph: Graph, prompt: Prompt, facts: Mapping[str, object]) -> None:
    """Write a graph and its picture, whole or not at all.

    Args:
        path: from :func:`vpd.analysis.artefacts.artefact_path`.
        run: it is of.
        graph: of the prompt.
        prompt: the input.
        facts: what else ``meta.json`` says.
    """
    names = Names(run)
    with new_artefact(path, SCHEMA_VERSION, run.origin, {"level": PROMPT, **facts}) as draft:
        _write(draft / GRAPH, graph_document(graph, prompt, names))
        (draft / PICTURE).write_bytes(png(graph_figure(graph, prompt, names.text, run.sites)))


def top_document(found: Attributions, names: Names, k: int) -> Iterator[dict[str, object]]:
    """Of every subcomponent and every output with attributions, its strongest sources and targets."""

    def told(ranked: Ranked) -> list[dict[str, object]]:
        return [{**names.of(name), "value": value} for name, value in ranked]

    sources = {str(found.sources.at(int(place))) for place in sorted(set(found.source.tolist()))}
    targets = {str(found.targets.at(int(place))) for place in sorted(set(found.target.tolist()))}
    order = [*found.targets.sizes, *(s for s in found.sources.sizes if s not in found.targets.sizes)]

    def place(name: str) -> tuple[int, int]:
        site, _, index = name.rpartition(":")
        return order.index(site), int(index)

    for name in sorted(sources | targets, key=place):
        entry = names.of(name)
        if name in targets:
            entry["sources"] = told(found.top_sources(name, k))
        if name in sources:
            entry["targets"] = told(found.top_targets(name, k))
        yield entry


def save_attributions(path: Path, run: Run, found: Attributions, k: int, facts: Mapping[str, object]) -> None:
    """Write attributions over data, whole or not at all: arrays, the strongest as JSON, a table of sites as a picture.

    Args:
        path: from :func:`vpd.analysis.artefacts.artefact_path`.
        run: they are of.
        found: the attributions.
        k: sources and targets that the JSON has of each.
        facts: what else ``meta.json`` says.
    """
    axes = {"sources": dict(found.sources.sizes), "targets": dict(found.targets.sizes), "positions": found.positions}
    with new_artefact(path, SCHEMA_VERSION, run.origin, {"level": DATASET, **axes, **facts}) as draft:
        write_arrays(draft, found)
        _write(draft / TOP, {"subcomponents": list(top_document(found, Names(run), k))})
        sources, targets = list(found.sources.sizes), list(found.targets.sizes)
        (draft / STRENGTHS).write_bytes(png(strengths_figure(site_strengths(found), sources, targets)))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
