"""What is known of a TMS, and how a decomposition is judged against it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.config.sites import matches
from vpd.data.features import single_features
from vpd.evaluation.ground_truth import Match, live_subcomponents, match_features
from vpd.evaluation.identity import dense_error, identity_error
from vpd.targets import TMS, frozen_weights
from vpd.training.state import Decomposition

Metrics = dict[str, float | int]
VerdictRow = dict[str, object]
SingleFeatures = Mapping[str, Float[np.ndarray, "..."]]

# The bars that a solved toy reaches.
MMCS_BAR, RANK_ONE_BAR, ML2R_BAR = 0.999, 0.998, (0.97, 1.03)
TOLERANCE = 0.1


def probe_batch(target: TMS) -> Float[Array, "n_features n_features"]:
    """Each feature alone at 0.75."""
    return single_features(target.linear1.shape[0])


def match_sites_to_truth(target: TMS, decomposition: Decomposition, single: SingleFeatures) -> dict[str, Match]:
    """The match of each decomposed site that reads features (``linear1``) or writes them (``linear2``)."""
    weights = frozen_weights(target, probe_batch(target))
    truth: dict[str, Match] = {}
    for site in ("linear1", "linear2"):
        if site not in single:
            continue
        pieces = decomposition.components[site]
        truth[site] = match_features(
            np.asarray(weights[site]),
            np.asarray(pieces.V),
            np.asarray(pieces.U),
            live_subcomponents(single[site], TOLERANCE),
            "rows" if site == "linear1" else "columns",
        )
    return truth


def truth_metrics(truth: Mapping[str, Match]) -> Metrics:
    """MMCS, rank-one cosine, ML2R, live count and recovered features of each site."""
    metrics: Metrics = {}
    for site, match in truth.items():
        metrics[f"MMCS/{site}"] = match.mmcs
        metrics[f"MMCS_rank_one/{site}"] = match.rank_one_mmcs
        metrics[f"ML2R/{site}"] = match.ml2r
        metrics[f"live/{site}"] = match.live
        metrics[f"features_recovered/{site}"] = match.recovered
    return metrics


def identity_metrics(metrics: Sequence[AnyMetric], single: SingleFeatures) -> Metrics:
    """IdentityCIError at 0.1 and 0.2, per site and in total, for every such metric of the run file."""
    found: Metrics = {}
    for metric in metrics:
        if not isinstance(metric, named.IdentityCIError):
            continue
        for tolerance in (0.1, 0.2):
            errors = _errors(metric, single, tolerance)
            suffix = "" if tolerance == TOLERANCE else f"@{tolerance}"
            found |= {f"{metric.key}/{site}{suffix}": error for site, error in errors.items()}
            found[f"{metric.key}/total{suffix}"] = sum(errors.values())
    return found


def _errors(metric: named.IdentityCIError, single: SingleFeatures, tolerance: float) -> dict[str, int]:
    errors: dict[str, int] = {}
    for pattern in metric.identity_ci or ():
        for site in matches(pattern.layer_pattern, single):
            errors[site] = identity_error(single[site], tolerance)
    for pattern in metric.dense_ci or ():
        for site in matches(pattern.layer_pattern, single):
            errors[site] = dense_error(single[site], pattern.k, tolerance)
    return errors


def truth_verdict(target: TMS, truth: Mapping[str, Match], single: SingleFeatures) -> list[VerdictRow]:
    """One row per measure and site, with the bar it has to reach."""
    n_features, n_hidden = target.linear1.shape
    rows: list[VerdictRow] = []
    for site, match in truth.items():
        error = identity_error(single[site], TOLERANCE)
        rows += [
            _row("features recovered", site, match.recovered, f"{n_features}", match.recovered == n_features),
            _row("live subcomponents", site, match.live, f"{n_features}", match.live == n_features),
            _row("column MMCS", site, match.mmcs, f"≥ {MMCS_BAR}", match.mmcs >= MMCS_BAR),
            _row(
                "rank-one cosine", site, match.rank_one_mmcs, f"≥ {RANK_ONE_BAR}", match.rank_one_mmcs >= RANK_ONE_BAR
            ),
            _row("ML2R", site, match.ml2r, f"{ML2R_BAR[0]} – {ML2R_BAR[1]}", ML2R_BAR[0] <= match.ml2r <= ML2R_BAR[1]),
            _row(f"IdentityCIError at {TOLERANCE}", site, error, "0", error == 0),
        ]
    for site in single:
        if site in truth:
            continue
        # A hidden identity layer is judged by its dense pattern and its live count.
        live = int(np.sum(live_subcomponents(single[site], TOLERANCE)))
        error = dense_error(single[site], n_hidden, TOLERANCE)
        rows += [
            _row("live subcomponents", site, live, f"{n_hidden}", live == n_hidden),
            _row(f"IdentityCIError at {TOLERANCE}", site, error, "0", error == 0),
        ]
    return rows


def _row(measure: str, site: str, value: float | int, expected: str, ok: bool) -> VerdictRow:
    return {"measure": measure, "site": site, "value": value, "expected": expected, "ok": bool(ok)}
