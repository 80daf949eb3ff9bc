"""``vpd.decompose``: train a decomposition from Python and get it back opened."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vpd.analysis.run import Run, open_run
from vpd.config import RunConfig, RunFile, read_document, read_run_file
from vpd.config.document import plain_block
from vpd.data.build import Sampler
from vpd.errors import RunError, Stopped
from vpd.records import refuse_missing_packages
from vpd.run import run
from vpd.targets.traced import TracedTarget
from vpd.targets.traced_build import run_file_content


def decompose(
    source: str | Path | RunConfig | Mapping[str, object],
    *,
    target: TracedTarget | None = None,
    data: Sampler | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out_dir: str | Path | None = None,
    run_id: str | None = None,
    quiet: bool = False,
) -> Run:
    """Decompose the network that a run file describes, or a traced one.

    A run directory that holds the same run unfinished is gone on with; a finished one is opened.

    Args:
        source: path of a run file, its content, or a configuration; for a traced target without ``target``, ``data``
            and ``pd.decomposition_targets``.
        target: what :func:`vpd.trace` made.
        data: ``data(key, n)`` gives n examples of its input; a JAX function.
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
    if (target is None) != (data is None):
        raise RunError("a traced target and its data go together; give both target=... and data=..., or neither")
    read = read_with(source, target=target, steps=steps, seed=seed, out_dir=out_dir, run_id=run_id)
    outcome = run(read.config, read.name, quiet=quiet, target=target, data=data)
    if not outcome.finished:
        raise Stopped(f"{outcome.directory.path} was stopped by a signal; call again to go on with it")
    return open_run(outcome.directory.path, target=target, data=data)


def read_with(
    source: str | Path | RunConfig | Mapping[str, object],
    *,
    target: TracedTarget | None = None,
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
    elif isinstance(source, Mapping):
        content, name = plain_block(source), None
    else:
        content, name = dict(read_document(Path(source))), Path(source).stem
    if target is not None:
        content = run_file_content(content, target)
    top = {"out_dir": None if out_dir is None else str(out_dir), "run_id": run_id}
    content |= {key: value for key, value in top.items() if value is not None}
    pd = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    block = content.get("pd")
    if pd and isinstance(block, Mapping):
        content["pd"] = {**block, **pd}
    read = read_run_file(content)
    refuse_missing_packages(read.config)
    return replace(read, name=name)
