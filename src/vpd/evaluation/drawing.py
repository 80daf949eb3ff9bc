"""What the figures of an evaluation are drawn from: the sums of the pass, as plates."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.config.sites import matches
from vpd.evaluation.accumulate import HISTOGRAM_BINS, Pass, Sums
from vpd.evaluation.ground_truth import live_subcomponents
from vpd.evaluation.health import ALIVE_MEAN_CI
from vpd.evaluation.identity import densest_columns, match_columns
from vpd.evaluation.induction import CONTRAST
from vpd.evaluation.plates import MAX_SITES, Plate
from vpd.evaluation.spectrum import SPECTRUM, spectrum_record
from vpd.evaluation.suite import Evaluation
from vpd.targets import TMS, LanguageModel, Target
from vpd.training.state import Decomposition


def plates_of(
    metrics: Sequence[AnyMetric], what: Pass, found: Evaluation, target: Target, decomposition: Decomposition
) -> Iterator[Plate]:
    """What the run file names, and for a plane of features their directions.

    Args:
        metrics: of the run file.
        what: what the pass accumulated.
        found: its result.
        target: the frozen network.
        decomposition: the parameters that were evaluated.
    """
    sums, N = found.sums, float(found.sums.positions)
    live = {site: live_subcomponents(ci) for site, ci in found.single_features.items()}
    live = live or {site: mean > ALIVE_MEAN_CI for site, mean in _mean_ci(sums).items()}
    if isinstance(target, TMS) and target.linear1.shape[1] == 2:
        yield Plate("direction_plot", "figures.direction_plot", (_directions(found, target, decomposition),))
    if found.induction is not None:
        given = (found.induction.l0, found.induction.contrast, CONTRAST)
        yield Plate("induction_plot", "induction_figures.induction_plot", given)
    for metric in metrics:
        match metric:
            case named.PermutedCIPlots():
                order = _orders(metric, found)
                given = ({s: found.single_features[s] for s in order}, order)
                yield Plate("permuted_ci_plot", "figures.permuted_ci_plot", given)
            case named.UVPlots():
                order = _orders(metric, found) or _by_mean(metric, sums)
                # No more than is shown: of a large network these are large.
                pieces = {s: decomposition.components[s] for s in list(order)[:MAX_SITES]}
                arrays = {s: (np.asarray(p.V), np.asarray(p.U)) for s, p in pieces.items()}
                given = (arrays, order, {s: live[s] for s in arrays}, list(order))
                yield Plate("uv_plot", "figures.uv_plot", given)
            case named.CIHistograms():
                counts = {s: np.asarray(x) for s, x in sums.histogram.items()}
                edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
                yield Plate("ci_histogram", "language_figures.ci_histogram", (counts, edges))
            case named.ComponentActivationDensity(ci_alive_threshold=threshold):
                i = what.thresholds.index(threshold)
                density = {s: np.asarray(active)[i] / N for s, active in sums.active.items()}
                yield Plate("activation_density", "language_figures.activation_density", (density, threshold))
            case named.CIMeanPerComponent():
                given = (_mean_ci(sums), ALIVE_MEAN_CI)
                yield Plate("ci_mean_spectrum", "language_figures.ci_mean_spectrum", given)
            case named.CI_L0(ci_alive_threshold=threshold) if isinstance(target, LanguageModel):
                given = _layer_map(sums, what.thresholds.index(threshold))
                yield Plate("layer_map", "language_figures.layer_map", given)
            case _:
                pass


def beside(metrics: Sequence[AnyMetric], found: Evaluation) -> dict[str, dict[str, object]]:
    """What the report draws itself, as JSON files beside the figures, by their names."""
    if not any(isinstance(metric, named.CIMeanPerComponent) for metric in metrics):
        return {}
    return {SPECTRUM: spectrum_record(_mean_ci(found.sums), ALIVE_MEAN_CI)}


def _mean_ci(sums: Sums) -> dict[str, np.ndarray]:
    return {site: np.asarray(ci) / float(sums.positions) for site, ci in sums.ci.items()}


def _layer_map(sums: Sums, threshold: int) -> tuple[dict[str, float], dict[str, float]]:
    N = float(sums.positions)
    l0 = {s: float(np.sum(active[threshold])) / N / active.shape[-1] for s, active in sums.active.items()}
    return l0, {s: float(np.mean(np.asarray(ci) / N > ALIVE_MEAN_CI)) for s, ci in sums.ci.items()}


def _orders(metric: named.PermutedPlots, found: Evaluation) -> dict[str, Int[np.ndarray, " C"]]:
    """Column order of each site; without patterns every site is ordered to show the identity."""
    single = found.single_features
    dense = {s for pattern in metric.dense_patterns or () for s in matches(pattern, single)}
    named_sites = {s for pattern in metric.identity_patterns or () for s in matches(pattern, single)}
    chosen = (dense | named_sites) or set(single)
    return {s: densest_columns(ci) if s in dense else match_columns(ci) for s, ci in single.items() if s in chosen}


def _by_mean(metric: named.PermutedPlots, sums: Sums) -> dict[str, Int[np.ndarray, " C"]]:
    """Column order of each site by mean importance, for targets without single features."""
    chosen = {s for pattern in metric.dense_patterns or ("*",) for s in matches(pattern, sums.ci)}
    return {s: np.argsort(-np.asarray(ci), kind="stable") for s, ci in sums.ci.items() if s in chosen}


def _directions(
    found: Evaluation, target: TMS, decomposition: Decomposition
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per site the target's feature vectors in the hidden plane, and those of its live subcomponents.

    A live subcomponent is drawn with its strongest feature.
    """
    first = np.asarray(target.linear1)
    second = first if target.linear2 is None else np.asarray(target.linear2).T
    panels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for site, features in (("linear1", first), ("linear2", second)):
        if site not in found.single_features:
            continue
        pieces = decomposition.components[site]
        reads, writes = np.asarray(pieces.V), np.asarray(pieces.U)
        per_feature, hidden = (reads, writes.T) if site == "linear1" else (writes.T, reads)
        chosen = np.flatnonzero(live_subcomponents(found.single_features[site]))
        strongest = np.argmax(np.abs(per_feature[:, chosen]), axis=0)
        panels[site] = (features, (per_feature[strongest, chosen] * hidden[:, chosen]).T)
    return panels
