"""The tables of a language model's report, from its pinned run file and its evaluations (method.md §10)."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vpd.config import metrics as named
from vpd.config.losses import FreshAdversary
from vpd.config.metrics import AnyMetric
from vpd.config.run import RunConfig
from vpd.errors import RunError
from vpd.evaluation.l0 import group_sites
from vpd.evaluation.maskings import DESCRIPTIONS, MASKINGS, WORDS
from vpd.evaluation.suite import budget_key

Metrics = Mapping[str, float]
_LAYER = re.compile(r"(.*?\.(\d+))\.(.+)")
ALL, OUTSIDE = "all matrices", "outside the layers"


class Masked(NamedTuple):
    """One row of the table of maskings; NaN where there is no number."""

    name: str
    description: str
    ce: float
    difference: float
    unrecovered: float
    kl: float


class Matrix(NamedTuple):
    """One decomposed matrix, or the sum of several; NaN where something was not measured."""

    name: str
    layer: str
    C: float
    l0: float
    alive: float
    firing: float


class Probe(NamedTuple):
    """What one adversary reaches, or what takes none."""

    name: str
    steps: int | None
    size: float | None
    kl: float

    @property
    def budget(self) -> float:
        """How far a source can be moved."""
        return math.nan if self.steps is None or self.size is None else self.steps * self.size


class Attention(NamedTuple):
    """Divergence of attention patterns, layers down and metrics across."""

    metrics: list[str]
    rows: list[tuple[str, list[float]]]


class Written(NamedTuple):
    """A prompt's end, and what follows it by masking."""

    prompt: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class LanguageTables:
    """All that the report of a language model has beside what other reports have.

    Attributes:
        maskings: one list a CEandKLLosses, the target's own row first.
        sums: all matrices, the groups of the run file, the layers.
        matrices: one by one, in the order of the network.
        positions: over how many firing was counted; None where it was not.
        probes: adversaries by budget, and the maskings they stand beside.
        attention: None where it was not measured.
        samples: continued prompts.
        samples_step: when they were written.
        note: on a network of which only quantised weights are known.
    """

    maskings: list[list[Masked]]
    sums: list[Matrix]
    matrices: list[Matrix]
    positions: int | None
    probes: list[Probe]
    attention: Attention | None
    samples: list[Written]
    samples_step: int | None
    note: str


def language_tables(config: RunConfig, metrics: Metrics, run_dir: Path, quantised: bool) -> LanguageTables:
    """What the latest values of all metrics say.

    Args:
        config: the pinned run file.
        metrics: by their full names.
        run_dir: the run directory, for the samples of text.
        quantised: whether the weights came from a quantised file.
    """
    listed = config.eval.metrics if config.eval else ()
    matrices = matrix_rows(config, metrics)
    step, samples = read_samples(run_dir)
    note = "The weights are those that a quantised file stands for: the dequantised network is decomposed."
    return LanguageTables(
        maskings=[masking_rows(metrics, m.key) for m in listed if isinstance(m, named.CEandKLLosses)],
        sums=sum_rows(config, matrices),
        matrices=matrices,
        positions=_positions(listed, metrics),
        probes=probe_rows(listed, metrics),
        attention=attention_rows(listed, metrics),
        samples=samples,
        samples_step=step,
        note=note if quantised else "",
    )


def masking_rows(metrics: Metrics, key: str) -> list[Masked]:
    """The target, then every masking that was measured."""

    def value(measure: str) -> float:
        return metrics.get(f"{key}/{measure}", math.nan)

    rows = [Masked("target", "the network itself", value("ce_target"), 0.0, 0.0, 0.0)]
    for masking in MASKINGS:
        if f"{key}/ce_{masking}" in metrics:
            measures = (f"ce_{masking}", f"ce_difference_{masking}", f"ce_unrecovered_{masking}", f"kl_{masking}")
            rows.append(Masked(WORDS[masking], DESCRIPTIONS[masking], *map(value, measures)))
    return rows if len(rows) > 1 else []


def matrix_rows(config: RunConfig, metrics: Metrics) -> list[Matrix]:
    """Every decomposed matrix that a metric was taken of."""
    listed = config.eval.metrics if config.eval else ()
    l0 = next((m for m in listed if isinstance(m, named.CI_L0)), None)
    mean = next((m for m in listed if isinstance(m, named.CIMeanPerComponent)), None)
    density = next((m for m in listed if isinstance(m, named.ComponentActivationDensity)), None)
    columns = (
        _by_site(metrics, l0.key, "", set(l0.groups or {})) if l0 else {},
        _by_site(metrics, mean.key, "/alive", set()) if mean else {},
        _by_site(metrics, density.key, "/firing", set()) if density else {},
    )
    sites = list(dict.fromkeys(site for column in columns for site in column))
    sizes = _sizes(config, sites)
    return [
        Matrix(site, layer_of(site), sizes.get(site, math.nan), *(column.get(site, math.nan) for column in columns))
        for site in sites
    ]


def _by_site(metrics: Metrics, key: str, ending: str, other: set[str]) -> dict[str, float]:
    found = {
        name.removeprefix(f"{key}/").removesuffix(ending): value
        for name, value in metrics.items()
        if name.startswith(f"{key}/") and name.endswith(ending)
    }
    return {site: value for site, value in found.items() if site not in other}


def _sizes(config: RunConfig, sites: Sequence[str]) -> dict[str, float]:
    """The number of subcomponents of each matrix."""
    patterns = {item.module_pattern: float(item.C) for item in config.pd.decomposition_targets}
    patterns |= {
        f"{item.module_pattern}.pre_identity": float(item.C) for item in config.pd.identity_decomposition_targets or ()
    }
    members = group_sites(sites, {pattern: [pattern] for pattern in patterns})
    return {site: patterns[pattern] for pattern in patterns for site in members[pattern]}


def layer_of(site: str) -> str:
    """The path of the layer that a matrix lies in."""
    found = _LAYER.match(site)
    return found[1] if found else OUTSIDE


def kind_of(site: str) -> tuple[str, int]:
    """What a matrix is in its layer, and the layer's number; outside of layers its own name and 0."""
    found = _LAYER.match(site)
    return (found[3], int(found[2])) if found else (site, 0)


def sum_rows(config: RunConfig, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Sums over all matrices, over the groups of CI_L0, and over each layer that is none of these."""
    listed = config.eval.metrics if config.eval else ()
    sites = [matrix.name for matrix in matrices]
    groups: dict[str, list[str]] = {ALL: sites}
    for metric in listed:
        if isinstance(metric, named.CI_L0):
            groups |= group_sites(sites, metric.groups or {})
    for layer in dict.fromkeys(matrix.layer for matrix in matrices):
        groups[layer] = [matrix.name for matrix in matrices if matrix.layer == layer]
    by_name = {matrix.name: matrix for matrix in matrices}
    rows: list[Matrix] = []
    known: set[frozenset[str]] = set()
    for group, members in groups.items():
        if members and frozenset(members) not in known:
            known.add(frozenset(members))
            own = [by_name[site] for site in members]
            rows.append(Matrix(group, "", *(sum(m[i] for m in own) for i in range(2, 6))))
    return rows


def _positions(listed: Sequence[AnyMetric], metrics: Metrics) -> int | None:
    for metric in listed:
        if isinstance(metric, named.ComponentActivationDensity) and f"{metric.key}/positions" in metrics:
            return int(metrics[f"{metric.key}/positions"])
    return None


def probe_rows(listed: Sequence[AnyMetric], metrics: Metrics) -> list[Probe]:
    """Fresh adversaries from the smallest budget to the largest; then what is reached without any ascent."""
    probes = [
        Probe(metric.key, metric.n_steps, metric.step_size, metrics[f"loss/{budget_key(metric)}"])
        for metric in listed
        if isinstance(metric, FreshAdversary) and f"loss/{budget_key(metric)}" in metrics
    ]
    probes.sort(key=lambda probe: probe.budget)
    keys = [m.key for m in listed if isinstance(m, named.CEandKLLosses)]
    beside = [
        Probe(WORDS[masking], None, None, metrics[f"{key}/kl_{masking}"])
        for key in keys[:1]
        for masking in ("stoch_masked", "ci_masked", "zero_masked")
        if f"{key}/kl_{masking}" in metrics
    ]
    return probes + beside if probes else []


def attention_rows(listed: Sequence[AnyMetric], metrics: Metrics) -> Attention | None:
    """Each layer's divergence by metric, and the mean over layers in the last row."""
    keys = [m.key for m in listed if isinstance(m, named.AttnPatterns) and m.key in metrics]
    if not keys:
        return None
    columns = {key: _by_site(metrics, key, "", set()) for key in keys}
    layers = dict.fromkeys(layer for column in columns.values() for layer in column)
    rows = [(layer, [columns[key].get(layer, math.nan) for key in keys]) for layer in layers]
    return Attention(keys, [*rows, ("mean", [metrics[key] for key in keys])])


def read_samples(run_dir: Path) -> tuple[int | None, list[Written]]:
    """The newest samples of text that were written."""
    found = {int(path.parent.name): path for path in (run_dir / "figures").glob("[0-9]*/samples.json")}
    if not found:
        return None, []
    path = found[max(found)]
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return max(found), [_written(one) for one in prompts]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} holds no samples of text: restore it, or delete it to do without.") from None


def _written(one: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Written:
    rows = [(WORDS.get(name, name), _text(new)) for name, new in one["continuations"].items()]
    return Written(_text(one), rows)


def _text(told: Mapping[str, object]) -> str:
    """The text, or the token ids where there was no tokenizer."""
    ids = told.get("ids")
    return str(told["text"]) if "text" in told else " ".join(map(str, ids if isinstance(ids, list) else []))
