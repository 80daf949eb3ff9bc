"""``vpd.decompose``: train a decomposition from Python and get it back opened."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vpd.analysis.run import Run, open_run
from vpd.config import RunConfig, RunFile, read_document, read_run_file
from vpd.errors import Stopped
from vpd.experiment import run


def decompose(
    source: str | Path | RunConfig,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out_dir: str | Path | None = None,
    run_id: str | None = None,
    quiet: bool = False,
) -> Run:
    """Decompose the network that a run file describes.

    A run directory that holds the same run unfinished is gone on with; a finished one is opened.

    Args:
        source: path of a run file, or a configuration.
        steps: in place of ``pd.steps``.
        seed: in place of ``pd.seed``.
        out_dir: folder in which the run directory is made; ``runs`` by default.
        run_id: name of the run directory; by default the run file's.
        quiet: no progress bar.

    Returns:
        The finished run, opened for reading.

    Raises:
        ConfigError: a run file that can't be used.
        RunError: a run directory that can't be written, or that holds another run.
        Stopped: a signal asked for it; what was reached is saved.
        NonFiniteError: a loss that is not finite.
    """
    read = read_with(source, steps=steps, seed=seed, out_dir=out_dir, run_id=run_id)
    outcome = run(read.config, read.name, quiet=quiet)
    if not outcome.finished:
        raise Stopped(f"{outcome.directory.path} was stopped by a signal; call again to go on with it")
    return open_run(outcome.directory.path)


def read_with(
    source: str | Path | RunConfig,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out_dir: str | Path | None = None,
    run_id: str | None = None,
) -> RunFile:
    """A checked run file with some values replaced.

    Raises:
        ConfigError: where the result can't be used.
    """
    if isinstance(source, RunConfig):
        content: dict[str, object] = source.model_dump(mode="json")
        name = None
    else:
        content, name = dict(read_document(Path(source))), Path(source).stem
    top = {"out_dir": None if out_dir is None else str(out_dir), "run_id": run_id}
    content |= {key: value for key, value in top.items() if value is not None}
    pd = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    block = content.get("pd")
    if pd and isinstance(block, Mapping):
        content["pd"] = {**block, **pd}
    return replace(read_run_file(content), name=name)
