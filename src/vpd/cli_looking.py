"""The commands that look into a run: what it found, what that responds to, what it does, and how to change it."""

from pathlib import Path
from typing import Annotated

import typer

from vpd.cli_options import Features, Force, Json, Positions, Prompt, Quiet, RunPath, Tokens

looking = typer.Typer()


@looking.command()
def evaluate(
    path: RunPath,
    step: Annotated[
        str | None, typer.Option(metavar="N|latest", help="Checkpoint to evaluate; the latest by default.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...", help="These alone: of the run file, or types that need no settings; may be repeated."
        ),
    ] = None,
    batches: Annotated[int | None, typer.Option(help="Evaluation batches, in place of eval.n_steps.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run's decomposition again."""
    from vpd.commands.evaluate import evaluate_command

    names = [name.strip() for words in metrics or () for name in words.split(",") if name.strip()]
    evaluate_command(path, step, batches, as_json, names)


@looking.command()
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    page: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page of several runs; beside the first by default.")
    ] = None,
) -> None:
    """Write a run's report.html again, or one page with several runs side by side; prints its path."""
    from vpd.commands.report import report_command

    report_command(paths, page)


@looking.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the page; beside the runs by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs of one target: do they find the same subcomponents?"""
    from vpd.commands.compare import compare_command

    compare_command(paths, folder, as_json)


@looking.command()
def harvest(
    path: RunPath,
    positions: Annotated[
        int, typer.Option("--positions", "--tokens", help="How many to read; of a text each row once.", min=1)
    ] = 1_000_000,
    split: Annotated[str, typer.Option(help="eval or train: whose batches are read.")] = "eval",
    threshold: Annotated[
        float, typer.Option(help="A subcomponent fires where its causal importance is above it.")
    ] = 0.1,
    windows: Annotated[
        int, typer.Option(help="Windows a subcomponent: sampled ones, and as many at its top.", min=0)
    ] = 8,
    context: Annotated[int, typer.Option(help="Positions on each side of a window's own.", min=0)] = 16,
    seed: Annotated[int, typer.Option(help="Of the sampled windows.", min=0)] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Read one part of N only; the one that ends last merges them.")
    ] = None,
    name: Annotated[str, typer.Option(help="Folder under harvest/.")] = "default",
    step: Annotated[int | None, typer.Option(help="Checkpoint to read; the latest by default.")] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count what subcomponents fire on, with whom, and what follows; a harvest that was stopped goes on."""
    from vpd.commands.harvest import harvest_command

    harvest_command(path, positions, split, threshold, windows, context, seed, shard, name, step, force, as_json, quiet)


@looking.command()
def show(
    path: RunPath,
    name: Annotated[
        str | None, typer.Argument(metavar="[SITE:INDEX]", help="A subcomponent; pages of all of them without it.")
    ] = None,
    harvested: Annotated[
        str | None, typer.Option("--harvest", help="Name of the harvest, where there are several.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Write the subcomponent's page instead.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="File or folder to write; in RUN/show by default.")
    ] = None,
    intruders: Annotated[int | None, typer.Option(help="Write so many intruder trials to -o FILE.json.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the trials.", min=0)] = 0,
    score: Annotated[Path | None, typer.Option(metavar="FILE", help="Score trials that were filled in.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Their answers; beside them by default.")] = None,
    table: Annotated[
        int | None, typer.Option(help="Print so many subcomponents, evenly ranked, as Markdown.", min=1)
    ] = None,
) -> None:
    """Show what was harvested: one subcomponent in the terminal, or pages of all."""
    from vpd.commands.show import show_command

    show_command(path, name, harvested, html, out, intruders, seed, score, key, table)


@looking.command()
def cluster(
    path: RunPath,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Bits for each member of an active cluster; several make a clustering each.  [default: 1]"),
    ] = None,
    sampler: Annotated[str, typer.Option(help="Choice of the pair that is merged: range, mcmc or exp_rank.")] = "range",
    temperature: Annotated[
        float,
        typer.Option(
            help="Of the sampler: fraction of the range of costs, bits per position, ranks; 0 takes the lowest cost."
        ),
    ] = 0.0,
    seeds: Annotated[int, typer.Option(help="Stochastic clusterings for each alpha, and how far they agree.")] = 1,
    threshold: Annotated[float, typer.Option(help="A subcomponent fires above this causal importance.")] = 0.1,
    positions: Annotated[int, typer.Option(help="Positions to look at: examples of toys, tokens of text.")] = 100_000,
    per_sequence: Annotated[int, typer.Option(help="Positions of one sequence at most, drawn at random.")] = 64,
    split: Annotated[str, typer.Option(help="Stream of the run to read: eval or train.")] = "eval",
    min_firings: Annotated[int, typer.Option(help="Leave out what fires at fewer positions.")] = 10,
    always_on: Annotated[float, typer.Option(help="Leave out what fires at more than this fraction of them.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the choice of positions.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the clusters: RUN/clusters/NAME.")] = "default",
    step: Annotated[int | None, typer.Option(help="Checkpoint to read; the latest by default.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Make nothing: compare the clusters NAME of both runs by where they fire."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Group the subcomponents that fire together into components; prints their folder on the last line."""
    from vpd.analysis.clustering.collect import Sampling
    from vpd.analysis.clustering.run_clustering import Merging
    from vpd.commands.cluster import against_command, cluster_command

    if against is not None:
        against_command(path, against, name, as_json, quiet)
        return
    sampling = Sampling(positions, threshold, split, per_sequence, seed, min_firings, always_on)
    merging = Merging(tuple(alpha or [1.0]), sampler, temperature, seeds)
    cluster_command(path, step, sampling, merging, name, force, as_json, quiet)


@looking.command()
def attribute(
    path: RunPath,
    prompt: Prompt = None,
    tokens: Tokens = None,
    features: Features = None,
    pruning: Annotated[
        str | None, typer.Option("--pruning", metavar="NAME", help="The prompt and the subset of a pruning.")
    ] = None,
    positions: Positions = None,
    threshold: Annotated[
        float, typer.Option(help="Smallest part of the output that an edge carries.", min=1e-6)
    ] = 0.01,
    batches: Annotated[int, typer.Option(help="Without a prompt: evaluation batches.", min=1)] = 1,
    targets: Annotated[str, typer.Option(metavar="GLOB", help="Without a prompt: sites, or output.")] = "*",
    outputs: Annotated[int, typer.Option(help="Without a prompt: tokens predicted most often.", min=1)] = 128,
    top: Annotated[int, typer.Option(help="Without a prompt: sources and targets of each in the JSON.", min=1)] = 10,
    name: Annotated[str | None, typer.Option(help="Folder under attributions/; dataset or prompt by default.")] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what feeds what: over data, or as the graph of one prompt; prints the folder on its last line."""
    from vpd.commands.attribute import attribute_data_command, attribute_prompt_command

    given = (prompt, tokens, features)
    if pruning is None and positions is None and not any(one is not None for one in given):
        attribute_data_command(path, batches, targets, outputs, top, name, force, as_json, quiet)
    else:
        attribute_prompt_command(path, given, pruning, positions, threshold, name, force, as_json, quiet)


@looking.command()
def prune(
    path: RunPath,
    prompt: Prompt = None,
    tokens: Tokens = None,
    features: Features = None,
    positions: Positions = None,
    measure: Annotated[str, typer.Option(help="kl from the target's output, or ce of the next token.")] = "kl",
    steps: Annotated[int, typer.Option(help="Updates.", min=1)] = 1000,
    coeff: Annotated[float, typer.Option(help="What one subcomponent costs at one position, in nats.", min=0)] = 3e-3,
    seed: Annotated[int, typer.Option(help="Of the masks.", min=0)] = 0,
    name: Annotated[str, typer.Option(help="Folder under prunings/.")] = "prompt",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the subcomponents that one behaviour needs; prints the folder on its last line."""
    from vpd.analysis.pruning import Effort
    from vpd.commands.prune import prune_command

    effort = Effort(steps, coeff, seed=seed)
    prune_command(path, (prompt, tokens, features), positions, measure, effort, name, force, as_json, quiet)


@looking.command()
def attention(
    path: RunPath,
    layer: Annotated[str | None, typer.Option(help="Number or path of a layer; all by default.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text whose attention is taken apart.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="ID,ID,...", help="The same as token ids, for networks that read no text.")
    ] = None,
    masking: Annotated[
        str, typer.Option(help="On the prompt: ci, the model masked by its importances; target, the network itself.")
    ] = "ci",
    top: Annotated[int, typer.Option(help="Pairs a layer, or a head of the prompt, in the tables.", min=1)] = 10,
    batches: Annotated[int, typer.Option(help="Batches that typical activations are measured on.", min=1)] = 10,
    name: Annotated[str, typer.Option(help="Of the folder under attention/.")] = "first",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take attention apart: which pairs of subcomponents make the scores, which heads they span."""
    from vpd.commands.attention import attention_command

    attention_command(path, layer, prompt, tokens, masking, top, batches, name, force, as_json, quiet)


@looking.command()
def edit(
    path: RunPath,
    ablate: Annotated[
        list[str] | None, typer.Option(metavar="SITE:INDEX,...", help="Remove these subcomponents.")
    ] = None,
    boost: Annotated[list[str] | None, typer.Option(metavar="SITE:INDEX=F,...", help="Multiply these by F.")] = None,
    file: Annotated[
        Path | None, typer.Option("--edits", metavar="FILE", help="Edits of a file, other directions among them.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Only at these positions of the sequence.")
    ] = None,
    when_active: Annotated[
        float | None, typer.Option(metavar="CI", help="Only where the causal importance is above this.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="SET", help="On target: repeated, TEXT=>NEXT, feature:I, or a file of prompts."),
    ] = None,
    off: Annotated[
        str | None, typer.Option(metavar="SET", help="Off target; what else there is in the data by default.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Rank N candidates for ablation by their effect.", min=1)
    ] = None,
    find: Annotated[
        int | None, typer.Option(metavar="N", help="List N continuations that few subcomponents carry.", min=1)
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches of evaluation data.", min=1)] = 20,
    first: Annotated[
        int, typer.Option(help="Number of the first batch, to measure on others than candidates were ranked on.", min=0)
    ] = 0,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the edited network.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ablate, boost or redirect subcomponents; say what it changes on target and off it; save the network."""
    from vpd.commands.edit import Asked, edit_command

    asked = Asked(ablate or [], boost or [], file, positions, when_active, on, off, rank, find, batches, first, save)
    edit_command(path, asked, as_json, quiet)
