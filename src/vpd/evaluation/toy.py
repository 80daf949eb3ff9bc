"""What is known of a toy on features, and how a decomposition is judged against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import jax
import numpy as np
from jaxtyping import Array, Float

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.config.sites import matches
from vpd.data.features import single_features
from vpd.evaluation.ground_truth import Match, best_match, live_subcomponents, match_features
from vpd.evaluation.identity import dense_error, identity_error
from vpd.targets import TMS, ResidMLP, frozen_weights
from vpd.training.state import Decomposition

Metrics = dict[str, float | int]
VerdictRow = dict[str, object]
SingleFeatures = Mapping[str, Float[np.ndarray, "..."]]
FeatureToy = TMS | ResidMLP

# The bars that a solved toy reaches.
MMCS_BAR, RANK_ONE_BAR, ML2R_BAR = 0.999, 0.998, (0.97, 1.03)
TOLERANCE, LOOSE_TOLERANCE = 0.1, 0.2


@dataclass(frozen=True)
class Group:
    """Sites that carry the features together, and how their match is judged.

    Attributes:
        label: of the group in results; its site's name where it is one.
        sites: their names.
        match: each feature's best live subcomponent.
    """

    label: str
    sites: tuple[str, ...]
    match: Match


def probe_batch(target: FeatureToy) -> Float[Array, "n_features n_features"]:
    """Each feature alone at 0.75."""
    return single_features(target.n_features)


def match_to_truth(target: FeatureToy, decomposition: Decomposition, single: SingleFeatures) -> list[Group]:
    """The match of the decomposed sites that read features or write them, where the truth is one mechanism a feature.

    In a TMS each of ``linear1`` and ``linear2`` has all features. In a ResidMLP they are shared out over the layers:
    a feature's subcomponent is looked for in the ``mlp_in`` of all of them, on what the embedding lets through.
    """
    match target:
        case TMS():
            weights = jax.jit(frozen_weights)(target, probe_batch(target))
            found = [
                _tms_site(site, weights[site], decomposition, single)
                for site in ("linear1", "linear2")
                if site in single
            ]
        case ResidMLP():
            layers = [site for site in single if fnmatchcase(site, "layers.*.mlp_in")]
            label = layers[0] if len(layers) == 1 else "layers.*.mlp_in"
            matches_ = [_resid_layer(site, target, decomposition, single) for site in layers]
            found = [Group(label, tuple(layers), best_match(matches_))] if layers else []
    return found


def _tms_site(
    site: str, weight: Float[Array, "d_in d_out"], decomposition: Decomposition, single: SingleFeatures
) -> Group:
    pieces = decomposition.components[site]
    arrays = (np.asarray(weight), np.asarray(pieces.V), np.asarray(pieces.U))
    live = live_subcomponents(single[site], TOLERANCE)
    return Group(site, (site,), match_features(*arrays, live, "rows" if site == "linear1" else "columns"))


def _resid_layer(site: str, target: ResidMLP, decomposition: Decomposition, single: SingleFeatures) -> Match:
    """Matched in the space of features: ``W_E @ W_in`` and ``W_E @ V``."""
    W_E = np.asarray(target.W_E, np.float64)
    weight = W_E @ np.asarray(target.layers[int(site.split(".")[1])].mlp_in)
    pieces = decomposition.components[site]
    V = W_E @ np.asarray(pieces.V)
    return match_features(weight, V, np.asarray(pieces.U), live_subcomponents(single[site], TOLERANCE), "rows")


def truth_metrics(groups: Sequence[Group]) -> Metrics:
    """MMCS, rank-one cosine, ML2R, live count and recovered features of each group."""
    metrics: Metrics = {}
    for group in groups:
        label, match = group.label, group.match
        metrics[f"MMCS/{label}"] = match.mmcs
        metrics[f"MMCS_rank_one/{label}"] = match.rank_one_mmcs
        metrics[f"ML2R/{label}"] = match.ml2r
        metrics[f"live/{label}"] = match.live
        metrics[f"features_recovered/{label}"] = match.recovered
    return metrics


def identity_metrics(metrics: Sequence[AnyMetric], single: SingleFeatures) -> Metrics:
    """IdentityCIError at 0.1 and 0.2, per site and in total, for every such metric of the run file."""
    found: Metrics = {}
    for metric in metrics:
        if not isinstance(metric, named.IdentityCIError):
            continue
        for tolerance in (TOLERANCE, LOOSE_TOLERANCE):
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


def truth_verdict(target: FeatureToy, groups: Sequence[Group], single: SingleFeatures) -> list[VerdictRow]:
    """One row per measure and group of sites, with the bar it has to reach.

    A hidden identity layer of a TMS, and the ``mlp_out`` of a ResidMLP, are judged by their dense pattern and their
    live count. The bars of a ResidMLP are on recovered and live subcomponents and on importances at 0.2; the rest is
    reported beside them. Where it has several layers a feature may be served by some of them or by all, so that there
    is no bar on how many subcomponents are live in ``mlp_in``.
    """
    rows: list[VerdictRow] = []
    for group in groups:
        rows += _feature_rows(target, group)
        for site in group.sites:
            if len(group.sites) > 1:
                live = int(np.sum(live_subcomponents(single[site], TOLERANCE)))
                rows.append(verdict_row("live subcomponents", site, live, "", None))
            errors = [identity_error(single[site], t) for t in (TOLERANCE, LOOSE_TOLERANCE)]
            rows += _error_rows(target, site, errors, judged=len(group.sites) == 1)
    for site, width in _dense_sites(target, single).items():
        live = int(np.sum(live_subcomponents(single[site], TOLERANCE)))
        rows.append(verdict_row("live subcomponents", site, live, f"{width}", live == width))
        rows += _error_rows(target, site, [dense_error(single[site], width, t) for t in (TOLERANCE, LOOSE_TOLERANCE)])
    return rows


def _feature_rows(target: FeatureToy, group: Group) -> list[VerdictRow]:
    n, site, match = target.n_features, group.label, group.match
    exact, one_site = isinstance(target, TMS), len(group.sites) == 1
    geometry = [
        ("column MMCS", match.mmcs, f"≥ {MMCS_BAR}", match.mmcs >= MMCS_BAR),
        ("rank-one cosine", match.rank_one_mmcs, f"≥ {RANK_ONE_BAR}", match.rank_one_mmcs >= RANK_ONE_BAR),
        ("ML2R", match.ml2r, f"{ML2R_BAR[0]} – {ML2R_BAR[1]}", ML2R_BAR[0] <= match.ml2r <= ML2R_BAR[1]),
    ]
    return [
        verdict_row("features recovered", site, match.recovered, f"{n}", match.recovered == n),
        verdict_row(
            "live subcomponents", site, match.live, f"{n}" if one_site else "", match.live == n if one_site else None
        ),
        *(
            verdict_row(measure, site, value, bar if exact else "", ok if exact else None)
            for measure, value, bar, ok in geometry
        ),
    ]


def _error_rows(target: FeatureToy, site: str, errors: Sequence[int], judged: bool = True) -> list[VerdictRow]:
    tight, loose = errors
    if isinstance(target, TMS):
        return [verdict_row(f"IdentityCIError at {TOLERANCE}", site, tight, "0", tight == 0)]
    return [
        verdict_row(
            f"IdentityCIError at {LOOSE_TOLERANCE}", site, loose, "0" if judged else "", loose == 0 if judged else None
        ),
        verdict_row(f"IdentityCIError at {TOLERANCE}", site, tight, "", None),
    ]


def _dense_sites(target: FeatureToy, single: SingleFeatures) -> dict[str, int]:
    """Sites all of whose directions are in use together, with the number of directions."""
    match target:
        case TMS():
            return {site: target.linear1.shape[1] for site in single if site.startswith("hidden_layers.")}
        case ResidMLP():
            sites = [f"layers.{i}.mlp_out" for i in range(len(target.layers))]
            return {site: target.layers[0].mlp_in.shape[1] for site in sites if site in single}


def mechanisms(target: FeatureToy, sites: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """Of the sites whose mechanisms are known: how many there are at least, and whether all are in use together.

    Where several layers of a ResidMLP share the features out, no one knows how many are in one.
    """
    dense = _dense_sites(target, dict.fromkeys(sites, np.zeros(0)))
    known = {site: (width, True) for site, width in dense.items()}
    if isinstance(target, TMS):
        known |= {site: (target.n_features, False) for site in ("linear1", "linear2") if site in sites}
    else:
        own = [site for site in sites if fnmatchcase(site, "layers.*.mlp_in")]
        known |= {site: (target.n_features if len(target.layers) == 1 else 0, False) for site in own}
    return known


def verdict_row(measure: str, site: str, value: float | int, expected: str, ok: bool | None) -> VerdictRow:
    """One line of a verdict; ``ok`` is None where there is no bar."""
    return {
        "measure": measure,
        "site": site,
        "value": value,
        "expected": expected,
        "ok": None if ok is None else bool(ok),
    }
