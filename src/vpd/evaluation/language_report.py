"""The tables of a language model's report, from its pinned run file and its evaluations (method.md §10)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ValidationError

from vpd.config import metrics as named
from vpd.config.losses import FreshAdversary
from vpd.config.metrics import AnyMetric
from vpd.config.run import RunConfig
from vpd.errors import RunError
from vpd.evaluation.l0 import group_sites
from vpd.evaluation.maskings import DESCRIPTIONS, MASKINGS, WORDS
from vpd.evaluation.scalars import budget_key
from vpd.evaluation.site_places import layer_of

Metrics = Mapping[str, float | int]
Series = dict[str, Float[np.ndarray, " _evals"]]
ALL = "all matrices"
SAMPLES = "samples.json"


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
        l0: over training, of all matrices and of groups of them.
        ce: cross-entropy over training by masking, the target's first.
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
    l0: Series
    ce: Series


def language_tables(config: RunConfig, evals: Sequence[Metrics], run_dir: Path, quantised: bool) -> LanguageTables:
    """What the latest values of all metrics say.

    Args:
        config: the pinned run file.
        evals: the metrics of every evaluation by their full names; a slow one may be in some alone.
        run_dir: the run directory, for the samples of text.
        quantised: whether the weights came from a quantised file.
    """
    listed = config.eval.metrics if config.eval else ()
    metrics = {name: value for one in evals for name, value in one.items()}
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
        l0=l0_series(config, evals),
        ce=ce_series(config, evals),
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


def without_matrices(metrics: Metrics, matrices: Sequence[Matrix]) -> dict[str, float | int]:
    """The metrics that are no single matrix's."""
    endings = {f"/{matrix.name}{what}" for matrix in matrices for what in ("", "/alive", "/firing")}
    return {name: value for name, value in metrics.items() if name[name.find("/") :] not in endings}


def _by_site(metrics: Metrics, key: str, ending: str, other: set[str]) -> dict[str, float]:
    found = {
        name.removeprefix(f"{key}/").removesuffix(ending): float(value)
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
            columns = zip(*(by_name[site][2:] for site in members), strict=True)
            rows.append(Matrix(group, "", *(float(sum(column)) for column in columns)))
    return rows


def l0_series(config: RunConfig, evals: Sequence[Metrics]) -> Series:
    """L0 of all matrices and of the groups of the run file, by evaluation."""
    listed = config.eval.metrics if config.eval else ()
    for metric in listed:
        if isinstance(metric, named.CI_L0):
            found: dict[str, list[float]] = {}
            for i, metrics in enumerate(evals):
                groups = {
                    g: metrics[f"{metric.key}/{g}"] for g in metric.groups or {} if f"{metric.key}/{g}" in metrics
                }
                sites = _by_site(metrics, metric.key, "", set(groups))
                for name, value in ({ALL: sum(sites.values())} | groups).items() if sites else ():
                    found.setdefault(name, [math.nan] * len(evals))[i] = value
            arrays = {name: np.array(own) for name, own in found.items()}
            twice = {g for g, x in arrays.items() if g != ALL and np.allclose(x, arrays[ALL], equal_nan=True)}
            return {name: own for name, own in arrays.items() if name not in twice}
    return {}


def ce_series(config: RunConfig, evals: Sequence[Metrics]) -> Series:
    """Cross-entropy by masking, the target's first, by evaluation."""
    listed = config.eval.metrics if config.eval else ()
    key = next((m.key for m in listed if isinstance(m, named.CEandKLLosses)), None)
    names = [name for name in WORDS if any(f"{key}/ce_{name}" in metrics for metrics in evals)]
    return {WORDS[name]: np.array([metrics.get(f"{key}/ce_{name}", math.nan) for metrics in evals]) for name in names}


def _positions(listed: Sequence[AnyMetric], metrics: Metrics) -> int | None:
    for metric in listed:
        if isinstance(metric, named.ComponentActivationDensity) and f"{metric.key}/positions" in metrics:
            return int(metrics[f"{metric.key}/positions"])
    return None


def probe_rows(listed: Sequence[AnyMetric], metrics: Metrics) -> list[Probe]:
    """Fresh adversaries from the smallest budget to the largest; then what is reached without any ascent."""
    probes: list[Probe] = []
    for metric in listed:
        match metric:
            case FreshAdversary():
                budgets, endings = [metric.n_steps], {"": ""}
            case named.PGDReconProbe():
                budgets, endings = list(metric.budgets), {"/worst": ", worst restart", "/mean": ", mean of restarts"}
                endings = {"/worst": ""} if metric.restarts == 1 else endings
            case _:
                continue
        for n in budgets:
            key = f"loss/{budget_key(metric.key, n, metric.step_size)}"
            found = {words: metrics[key + ending] for ending, words in endings.items() if key + ending in metrics}
            probes += [Probe(metric.key + words, n, metric.step_size, value) for words, value in found.items()]
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
    found = {int(path.parent.name): path for path in (run_dir / "figures").glob(f"[0-9]*/{SAMPLES}")}
    if not found:
        return None, []
    path = found[max(found)]
    try:
        samples = _Samples.model_validate_json(path.read_bytes())
    except ValidationError:
        raise RunError(f"{path} holds no samples of text: restore it, or delete it to do without.") from None
    return max(found), [_written(sample) for sample in samples.prompts]


class _Told(BaseModel):
    ids: list[int]
    text: str | None = None

    @property
    def shown(self) -> str:
        """The text on one line, or the token ids where there was no tokenizer."""
        return " ".join(map(str, self.ids)) if self.text is None else self.text.replace("\n", "↵ ")


class _Sample(_Told):
    continuations: dict[str, _Told]


class _Samples(BaseModel):
    prompts: list[_Sample]


def _written(sample: _Sample) -> Written:
    return Written(sample.shown, [(WORDS.get(name, name), new.shown) for name, new in sample.continuations.items()])
