"""``vpd prepare-data``: text in, a folder of token shards out."""

from functools import partial
from pathlib import Path

import typer

from vpd.data.prepare import Options, prepare
from vpd.data.sources import Wanted, find_source
from vpd.data.text import tokenizer_for
from vpd.errors import ConfigError, Stopped
from vpd.progress import preparing_meter


def prepare_data_command(
    wanted: Wanted, options: Options, tokenizer_name: str, folder: Path, jobs: int, quiet: bool
) -> None:
    """Prepare a source and print the folder.

    Raises:
        ConfigError: where a value can't be used.
        Stopped: by a signal; what is made so far is kept.
    """
    if not 0 <= options.eval_fraction < 1:
        raise ConfigError(f"--eval-fraction: {options.eval_fraction} is no part of the documents; give 0 to 0.99")
    for name in options.splits:
        if not name.replace("-", "_").isidentifier():
            raise ConfigError(f"--eval-split: {name!r} can't be part of a file name; give a word")
    if wanted.separator == "":
        raise ConfigError("--separator: an empty text parts nothing; leave it out, and each file is one document")
    source = find_source(wanted, options.splits)
    tokenizer = tokenizer_for(tokenizer_name, wanted.tokenized)
    watch = partial(preparing_meter, quiet=quiet)
    try:
        made = prepare(source, options, tokenizer, tokenizer_name, folder, watch, jobs)
    except Stopped:
        raise Stopped("stopped by a signal; the same command goes on with what is not made yet") from None
    for name, split in made.splits.items():
        rows = f"{split.rows} rows of {made.length} tokens from {split.documents} documents"
        typer.echo(f"{name}: {rows} in {len(split.shards)} shards")
    typer.echo(str(folder))
