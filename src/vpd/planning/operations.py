"""Operations of a step by the parts that a plan shows, counted from shapes."""

import math
from collections.abc import Mapping
from functools import partial

import jax

from vpd.experiment import Experiment, leading_of
from vpd.planning.abstract import batch_template
from vpd.targets.base import recorded_forward, with_identities
from vpd.targets.layers import Resume
from vpd.training.cost import step_operations, trained_sizes
from vpd.training.state import TrainState

# What the names of the counted parts end in; whatever else there is stands for itself.
SHOWN = {" forward": "recon forwards", " backward": "recon backwards", " ascents": "ascents"}


def counted_operations(experiment: Experiment, template: TrainState) -> dict[str, int]:
    """Operations of one step over all devices, by part (:func:`vpd.training.cost.step_operations`).

    Args:
        experiment: abstract or real.
        template: its state, abstract or real.
    """
    leading = leading_of(experiment.config, experiment.target)
    positions, sequence = math.prod(leading), math.prod(leading[1:])
    trained = trained_sizes(template.decomposition)
    matrices = with_identities(experiment.target.matrices())
    return step_operations(experiment.problem, matrices, trained, positions, sequence, _resume(experiment))


def grouped(parts: Mapping[str, int]) -> dict[str, int]:
    """The parts of all recon terms together: forwards, backwards and ascents."""
    found: dict[str, int] = {}
    for name, count in parts.items():
        own = name.startswith("ci ")
        group = next((shown for end, shown in SHOWN.items() if name.endswith(end) and not own), name)
        group = name.replace("ci ", "CI ") if own else group
        found[group] = found.get(group, 0) + count
    return found


def _resume(experiment: Experiment) -> Resume | None:
    """Where masked forwards begin; nothing is computed."""
    problem = experiment.problem
    if not problem.reuse_prefix:
        return None
    forward = partial(recorded_forward, sites=problem.sites)
    return jax.eval_shape(forward, experiment.target, batch_template(experiment)).resume
