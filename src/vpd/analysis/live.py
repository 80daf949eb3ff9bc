"""Which subcomponents of a run are live: on toys by single features, otherwise by mean causal importance."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vpd.analysis.run import Run
from vpd.evaluation.ground_truth import live_subcomponents
from vpd.evaluation.suite import ALIVE_MEAN_CI
from vpd.evaluation.toy import TOLERANCE, probe_batch
from vpd.targets import TMS, ResidMLP

BATCHES = 10


@dataclass(frozen=True)
class LiveSet:
    """The live subcomponents of a run at every site.

    Attributes:
        criterion: what made them live, in words.
        live: ``{site: [C]}``.
    """

    criterion: str
    live: Mapping[str, Bool[np.ndarray, " C"]]


def live_set(run: Run) -> LiveSet:
    """The live subcomponents of a run (method.md §10)."""
    probe = single_feature_probe(run)
    return live_by_mean(run) if probe is None else live_by_probe(run, probe)


def single_feature_probe(run: Run) -> Float[Array, "n_features n_features"] | None:
    """Each feature alone, where the run's inputs are sparse features; None elsewhere."""
    target = run.experiment.target
    return probe_batch(target) if isinstance(target, TMS | ResidMLP) else None


def live_by_probe(run: Run, probe: Float[Array, "n_features n_features"]) -> LiveSet:
    """Live is what lower CI calls important for at least one feature alone."""
    ci = run.causal_importances(probe)
    criterion = f"lower CI > {TOLERANCE:g} on at least one single-feature input"
    return LiveSet(criterion, {site: live_subcomponents(np.asarray(ci[site]), TOLERANCE) for site in run.sites})


def live_by_mean(run: Run, batches: int = BATCHES) -> LiveSet:
    """Live is what has a mean lower CI above 1e-6 over some evaluation batches of the run's own stream."""
    total = {site: np.zeros(run.components(site).V.shape[1]) for site in run.sites}
    for index in range(batches):
        ci = run.causal_importances(run.batch(index))
        for site in run.sites:
            leading = tuple(range(ci[site].ndim - 1))
            total[site] += np.asarray(jnp.mean(ci[site], axis=leading), np.float64) / batches
    criterion = f"mean lower CI > {ALIVE_MEAN_CI:g} over {batches} evaluation batches"
    return LiveSet(criterion, {site: mean > ALIVE_MEAN_CI for site, mean in total.items()})
