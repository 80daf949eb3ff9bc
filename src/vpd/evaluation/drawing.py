"""Draws the figures of an evaluation into ``figures/<step>/``, whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.config.sites import matches
from vpd.evaluation import figures, induction_figures, language_figures
from vpd.evaluation.accumulate import HISTOGRAM_BINS, Pass, Sums
from vpd.evaluation.ground_truth import live_subcomponents
from vpd.evaluation.health import ALIVE_MEAN_CI
from vpd.evaluation.identity import densest_columns, match_columns
from vpd.evaluation.induction import CONTRAST
from vpd.evaluation.induction_figures import induction_plot
from vpd.evaluation.suite import Evaluation
from vpd.targets import TMS, LanguageModel, Target
from vpd.training.state import Decomposition

CAPTIONS = figures.CAPTIONS | induction_figures.CAPTIONS | language_figures.CAPTIONS


def write_figures(
    run_dir: Path,
    metrics: Sequence[AnyMetric],
    what: Pass,
    found: Evaluation,
    target: Target,
    decomposition: Decomposition,
    samples: Mapping[str, object] | None = None,
) -> Path:
    """Draw what the run file names, and for a plane of features their directions; returns the folder.

    Args:
        run_dir: the run directory.
        metrics: of the run file.
        what: what the pass accumulated.
        found: its result.
        target: the frozen network.
        decomposition: the parameters that were evaluated.
        samples: text under each masking, for language models.
    """
    final = run_dir / "figures" / str(found.step)
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    captions: dict[str, dict[str, str]] = {}
    for name, figure in _figures(metrics, what, found, target, decomposition):
        (draft / f"{name}.png").write_bytes(figures.png(figure))
        captions[name] = CAPTIONS[name]
    _write_json(draft / "captions.json", captions)
    if samples is not None:
        _write_json(draft / "samples.json", samples)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(draft, final)
    return final


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _figures(
    metrics: Sequence[AnyMetric], what: Pass, found: Evaluation, target: Target, decomposition: Decomposition
) -> Iterator[tuple[str, Figure]]:
    sums, N = found.sums, float(found.sums.positions)
    live = {site: live_subcomponents(ci) for site, ci in found.single_features.items()}
    live = live or {site: np.asarray(ci) / N > ALIVE_MEAN_CI for site, ci in sums.ci.items()}
    if isinstance(target, TMS) and target.linear1.shape[1] == 2:
        yield "direction_plot", figures.direction_plot(_directions(found, target, decomposition))
    if found.induction is not None:
        yield "induction_plot", induction_plot(found.induction.l0, found.induction.contrast, CONTRAST)
    for metric in metrics:
        match metric:
            case named.PermutedCIPlots():
                order = _orders(metric, found)
                yield "permuted_ci_plot", figures.permuted_ci_plot({s: found.single_features[s] for s in order}, order)
            case named.UVPlots():
                order = _orders(metric, found) or _by_mean(metric, sums)
                pieces = {s: decomposition.components[s] for s in order}
                arrays = {s: (np.asarray(p.V), np.asarray(p.U)) for s, p in pieces.items()}
                yield "uv_plot", figures.uv_plot(arrays, order, {s: live[s] for s in order})
            case named.CIHistograms():
                counts = {s: np.asarray(x) for s, x in sums.histogram.items()}
                yield "ci_histogram", _histogram(counts)
            case named.ComponentActivationDensity(ci_alive_threshold=threshold):
                i = what.thresholds.index(threshold)
                density = {s: np.asarray(active)[i] / N for s, active in sums.active.items()}
                yield "activation_density", _density(density, threshold)
            case named.CIMeanPerComponent():
                yield "ci_mean_spectrum", _spectrum({s: np.asarray(x) / N for s, x in sums.ci.items()})
            case named.CI_L0(ci_alive_threshold=threshold) if isinstance(target, LanguageModel):
                yield "layer_map", _layer_map(sums, what.thresholds.index(threshold))
            case _:
                pass


def _crowded(by_site: Mapping[str, object]) -> bool:
    """Whether the matrices are too many for a panel each."""
    return len(by_site) > figures.MAX_SITES


def _histogram(counts: dict[str, np.ndarray]) -> Figure:
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    return (language_figures.histograms_by_kind if _crowded(counts) else figures.ci_histogram)(counts, edges)


def _density(density: dict[str, np.ndarray], threshold: float) -> Figure:
    if not _crowded(density):
        return figures.activation_density(density, threshold)
    title = f"{CAPTIONS['activation_density']['title']} (lower CI above {threshold:g})"
    return language_figures.spectra_by_kind(density, None, title, "fraction of positions", "fire")


def _spectrum(mean_ci: dict[str, np.ndarray]) -> Figure:
    if not _crowded(mean_ci):
        return figures.ci_mean_spectrum(mean_ci, ALIVE_MEAN_CI)
    title = CAPTIONS["ci_mean_spectrum"]["title"]
    return language_figures.spectra_by_kind(mean_ci, ALIVE_MEAN_CI, title, "mean lower CI", "alive")


def _layer_map(sums: Sums, threshold: int) -> Figure:
    N = float(sums.positions)
    l0 = {s: float(np.sum(active[threshold])) / N / active.shape[-1] for s, active in sums.active.items()}
    alive = {s: float(np.mean(np.asarray(ci) / N > ALIVE_MEAN_CI)) for s, ci in sums.ci.items()}
    return language_figures.layer_map(l0, alive)


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
