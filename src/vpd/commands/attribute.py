"""``vpd attribute``: what feeds what, over data or in one prompt."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from vpd.analysis.artefacts import artefact_path
from vpd.analysis.attribution.dataset import attribute_data, matched_sites
from vpd.analysis.attribution.export import PICTURE, STRENGTHS, Names, graph_document, save_attributions, save_graph
from vpd.analysis.attribution.graph import Graph, Node, prompt_graph
from vpd.analysis.attribution.store import DATASET, KIND, PROMPT, Attributions
from vpd.analysis.attribution.sums import Asked
from vpd.analysis.parts import Parts
from vpd.analysis.prompts import Prompt, read_positions, read_prompt
from vpd.analysis.pruning import pruned_prompt
from vpd.analysis.run import open_run
from vpd.commands.tables import results_console
from vpd.errors import RunError
from vpd.machine import use_compile_cache
from vpd.progress import watched
from vpd.run_directory import finite

# Edges and entries that are printed.
SHOWN = 15


def attribute_data_command(
    path: Path,
    batches: int,
    targets: str,
    outputs: int,
    top: int,
    name: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Attributions over data, or what is left of them: written, and the strongest of them printed."""
    parts = Parts(path, KIND, name or DATASET, Asked)
    begun = None if force else parts.planned()
    run = open_run(path, None if begun is None else begun.step)
    use_compile_cache(run.config.runtime.compilation_cache_dir)
    matched_sites(run, targets)
    place = parts.begin(Asked(run.step, batches, targets, outputs), force)
    with parts.held("the data"):
        found = attribute_data(run, batches, targets, outputs, watched("attributing", "target", quiet), parts)
        save_attributions(place, run, found, top, {"batches": batches, "glob": targets})
        shutil.rmtree(parts.path)
    if as_json:
        result = {"path": str(place), "positions": found.positions, "entries": len(found.source)}
        typer.echo(json.dumps(finite(result | {"strongest": _strongest(found)})))
        return
    _print(_strongest(found), f"{run.path.name}, step {run.step}: strongest attributions, normalised", "value")
    typer.echo(f"sites: {place / STRENGTHS}")
    typer.echo(place)


def attribute_prompt_command(
    path: Path,
    prompt: tuple[str | None, str | None, str | None],
    pruning: str | None,
    positions: str | None,
    threshold: float,
    name: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """The graph of a prompt, given as text, tokens or features, or of the subset that a pruning has found in one."""
    run = open_run(path)
    members = None
    if pruning is None:
        asked = read_prompt(run, *prompt)
        at = read_positions(positions, len(asked.words))
    else:
        if positions is not None or any(given is not None for given in prompt):
            raise RunError("--pruning brings its own prompt and positions; leave the others out")
        asked, at, members = pruned_prompt(run, pruning)
    place = artefact_path(run.path, KIND, name or PROMPT, force)
    graph = prompt_graph(run, asked, at, threshold, members, watched("attributing", "site", quiet))
    facts = {"prompt": asked.given, "positions": list(at), "threshold": threshold, "pruning": pruning}
    save_graph(place, run, graph, asked, facts)
    if as_json:
        document = graph_document(graph, asked, Names(run))
        typer.echo(json.dumps(finite({"path": str(place), **document}), ensure_ascii=False))
        return
    _print(_edges(graph, asked), f"{run.path.name}, step {run.step}: strongest edges of the graph", "strength")
    typer.echo(f"{len(graph.influence)} nodes, {len(graph.edges)} edges: {place / PICTURE}")
    typer.echo(place)


def _strongest(found: Attributions) -> list[Mapping[str, object]]:
    order = sorted(range(len(found.source)), key=lambda i: -abs(found.signed[i]))[:SHOWN]
    return [
        {
            "source": str(found.sources.at(int(found.source[i]))),
            "target": str(found.targets.at(int(found.target[i]))),
            "value": float(found.signed[i]),
        }
        for i in order
    ]


def _edges(graph: Graph, prompt: Prompt) -> list[Mapping[str, object]]:
    def told(node: Node) -> str:
        return f"{node.name} @ {node.position} {prompt.words[node.position]!r}"

    return [
        {"source": told(e.source), "target": told(e.target), "share": e.share, "strength": e.strength}
        for e in graph.edges[:SHOWN]
    ]


def _print(rows: Sequence[Mapping[str, object]], title: str, last: str) -> None:
    table = Table(title=escape(title), title_justify="left")
    for column in rows[0] if rows else ("source", "target", last):
        table.add_column(column, justify="left" if column in ("source", "target") else "right")
    for row in rows:
        table.add_row(*(f"{x:.4f}" if isinstance(x, float) else escape(str(x)) for x in row.values()))
    results_console().print(table)
