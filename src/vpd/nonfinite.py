"""What a run leaves behind that stops at values which are not finite: ``nonfinite/<step>.json``.

The step donates its state, so the one before the bad step is gone when it is found. Runs are deterministic: the newest
good checkpoint and the steps after it give that state again, to the bit, and training pays nothing for it.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vpd.data.feed import Batches, Given, HostBatches, Reader
from vpd.errors import NonFiniteError, RunError
from vpd.experiment import Experiment, put_given
from vpd.hosts import gathered, is_first
from vpd.run_directory import RunDirectory, write_atomically
from vpd.targets import Target
from vpd.training.diagnosis import (
    BySite,
    Extent,
    StepExtents,
    by_matrix,
    ci_extents,
    component_extents,
    first_bad,
    step_extents,
)
from vpd.training.state import TrainState
from vpd.training.step import Logs

SCHEMA_VERSION = 1
STEPS_AT_ONCE = 16
AFTER = " after"

Compiled = Callable[[Target, TrainState, Array, Array, Given], tuple[TrainState, Logs]]
Dump = dict[str, object]


def leave_dump(
    error: NonFiniteError,
    experiment: Experiment,
    directory: RunDirectory,
    program: Compiled,
    last_good: Callable[[], TrainState],
    stopped: Callable[[], bool],
    notify: Callable[[str], None],
) -> NonFiniteError:
    """Write down what the bad step met, and say it.

    What is known at once is written first; a signal while the step is made again leaves it at that.

    Args:
        error: as the loop raised it.
        experiment: the run.
        directory: its directory.
        program: the training program.
        last_good: the state of the newest good checkpoint, or the first state where there is none.
        stopped: whether a signal came.
        notify: told what takes long.

    Returns:
        The error to raise instead: it names the first array and site that are not finite, and the dump.
    """
    assert error.step is not None
    path = directory.path / "nonfinite" / f"{error.step}.json"
    dump = _known(error, experiment)
    where = None
    try:
        path.parent.mkdir(exist_ok=True)
        _write(path, dump)
        again = _made_again(error.step, experiment, program, last_good, stopped, notify)
        if again is not None:
            where = first_bad(again.sites)
            _write(path, dump | again.as_record(where))
    except (OSError, RunError) as trouble:
        notify(f"step {error.step} can't be looked into ({' '.join(str(trouble).split())})")
    parts = [error.found]
    if where is not None:
        what, site = where
        parts.append(
            f"step {error.step} left {what.removesuffix(AFTER)} of {site} that are not finite"
            if what.endswith(AFTER)
            else f"the first that is not finite is the {what} of {site}"
        )
    if path.exists():
        parts.append(f"{path} says more")
    return NonFiniteError("; ".join(parts), error.step, error.logs, error.advice)


class _Again:
    """One step that was made again: what it started from, learned and left behind."""

    def __init__(self, experiment: Experiment, extents: StepExtents, after: TrainState, since: int) -> None:
        problem = experiment.problem
        self._since, self._extents = since, extents
        self.sites: dict[str, BySite] = {what: by_matrix(problem, found) for what, found in extents.in_order().items()}
        left = gathered(jax.jit(partial(component_extents, problem))(after.decomposition.components))
        self.sites |= {f"V{AFTER}": by_matrix(problem, left.V), f"U{AFTER}": by_matrix(problem, left.U)}
        self._ci_after = gathered(jax.jit(ci_extents)(after.decomposition))

    def as_record(self, first: tuple[str, str] | None) -> Dump:
        names = dict.fromkeys(site for by_site in self.sites.values() for site in by_site)
        return {
            "made_again_from": self._since,
            "first": None if first is None else {"what": first[0], "site": first[1]},
            "sites": {
                site: {what: by_site[site].as_record() for what, by_site in self.sites.items() if site in by_site}
                for site in names
            },
            "ci_fn": {
                path: {
                    "value": found.as_record(),
                    "gradient": self._extents.ci_fn_gradient[path].as_record(),
                    "value after": self._ci_after[path].as_record(),
                }
                for path, found in self._extents.ci_fn.items()
            },
            "norms": {what: _norm(by_site) for what, by_site in self.sites.items()}
            | {
                "CI function": _norm(self._extents.ci_fn),
                "gradient of CI function": _norm(self._extents.ci_fn_gradient),
            },
        }


def _made_again(
    step: int,
    experiment: Experiment,
    program: Compiled,
    last_good: Callable[[], TrainState],
    stopped: Callable[[], bool],
    notify: Callable[[str], None],
) -> _Again | None:
    """The bad step from the state before it; None where a signal came first."""
    batches, seed = experiment.train_batch, jnp.asarray(experiment.config.pd.seed, jnp.uint32)
    at_once = batches.per_dispatch if isinstance(batches, HostBatches) else STEPS_AT_ONCE
    state = last_good()
    since = t = int(state.training.step)
    if step > t:
        notify(f"steps {t} to {step} are made again, to see what is not finite; a signal leaves it out")
    with Reader(batches, t) as reader:
        while t < step and not stopped():
            n = min(at_once, step - t)
            state, _ = program(
                experiment.target, state, jnp.asarray(n, jnp.int32), seed, put_given(experiment, reader.take(n))
            )
            t = int(state.training.step)
        if stopped():
            return None
        batch = batches(seed, jnp.asarray(step, jnp.int32))
        look = jax.jit(partial(step_extents, experiment.problem))
        extents = gathered(look(experiment.target, state, batch, seed))
        after, _ = program(
            experiment.target, state, jnp.asarray(1, jnp.int32), seed, put_given(experiment, reader.take(1))
        )
        return _Again(experiment, extents, after, since)


def _known(error: NonFiniteError, experiment: Experiment) -> Dump:
    """What is known without making the step again."""
    seed, step = experiment.config.pd.seed, error.step
    assert step is not None
    batch: Dump = {"seed": seed, "step": step, "stream": "data/train"}
    rows = _rows(experiment.train_batch, step)
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "found": error.found,
        "batch": batch | ({} if rows is None else {"rows": rows}),
        "logs": error.logs,
    }


def _rows(batches: Batches, step: int) -> list[int] | None:
    """The rows of the data set that a batch of text holds."""
    if not isinstance(batches, HostBatches):
        return None
    from vpd.data.tokens import TokenBatches  # Arrow, which only text needs

    return batches.rows.places(step).tolist() if isinstance(batches.rows, TokenBatches) else None


def _norm(parts: Mapping[str, Extent]) -> float:
    """Of several arrays together; entries that are not finite are left out."""
    # In float64, where the square of a float32 is finite.
    return float(np.sqrt(sum(np.sum(np.asarray(found.norm, np.float64) ** 2) for found in parts.values())))


def _write(path: Path, dump: Dump) -> None:
    if is_first():
        write_atomically(path, json.dumps(_spelt(dump), indent=1) + "\n")


def _spelt(value: object) -> object:
    """NaN and infinities as words: JSON has no numbers for them, and here they are what matters."""
    if isinstance(value, Mapping):
        return {str(key): _spelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value
