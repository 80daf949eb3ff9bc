"""The scalars of a pass that are means over its batches: what is summed, and what it is divided by."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.decomposition import Site, members_in_order, unstacked
from vpd.evaluation.accumulate import Counts, Pass, Sums
from vpd.evaluation.intervals import Mean
from vpd.evaluation.l0 import group_sites
from vpd.evaluation.maskings import named_losses
from vpd.objective import Persistent, ReconTerm
from vpd.objective.total import HIDDEN, Term

Named = Iterator[tuple[str, Mean]]


def batch_means(
    metrics: Sequence[AnyMetric],
    terms: Mapping[str, Term],
    what: Pass,
    sites: Sequence[Site],
    each: Sums,
    step: int,
) -> dict[str, Mean]:
    """Every metric that is a mean over positions, batch by batch.

    Args:
        metrics: of the run file.
        terms: losses that are evaluated, by key.
        what: what the pass accumulated.
        sites: the decomposed sites.
        each: sums of each batch, along a first axis.
        step: updates made; a persistent term that has not begun is left out.
    """
    found = dict(_losses(terms, sites, each, step))
    for metric in metrics:
        match metric:
            case named.CI_L0():
                found |= dict(_l0(metric, what, sites, each))
            case named.CEandKLLosses():
                found |= dict(_language(metric.key, each))
            case named.AttnPatterns():
                found |= dict(_attention(metric.key, each))
            case named.PGDReconProbe():
                for key in (budget_key(metric.key, n, metric.step_size) for n in metric.budgets):
                    found |= {f"loss/{key}/{of}": _per_position(x, each) for of, x in each.probes[key].items()}
            case _:
                pass
    return found


def budget_key(key: str, n_steps: int, step_size: float) -> str:
    """A probe's key: its name or type, and the number and size of its ascents."""
    return f"{key}_{n_steps}x{step_size:g}"


def total_l0(what: Pass, sites: Sequence[Site], each: Sums, threshold: float) -> Mean:
    """Important subcomponents a position, of all matrices together."""
    return _per_position(sum(_active(what, sites, each, threshold).values(), np.zeros(())), each)


def _per_position(total: Counts, each: Sums) -> Mean:
    return Mean(np.asarray(total, np.float64), np.asarray(each.positions, np.float64))


def _losses(terms: Mapping[str, Term], sites: Sequence[Site], each: Sums, step: int) -> Named:
    for key, term in terms.items():
        match term:
            case ReconTerm(measure="hidden_acts"):
                errors, elements = (
                    _by_matrix(by_term[key], sites) for by_term in (each.hidden_errors, each.hidden_elements)
                )
                yield f"loss/{key}", Mean(np.sum(list(errors.values()), 0), np.sum(list(elements.values()), 0))
                yield from ((f"{key}/{s}", Mean(errors[s], elements[s])) for s in errors)
            case ReconTerm(source=Persistent(first_step=first_step)) if step < first_step:
                pass  # its sources rest
            case ReconTerm():
                yield f"loss/{key}", _per_position(each.recon[key], each)
                if term.rider is not None:
                    yield f"loss/{key}/{HIDDEN}", _per_position(each.riders[key], each)
            case _:
                pass  # not a mean over positions


def _by_matrix(by_site: Mapping[str, Counts], sites: Sequence[Site]) -> dict[str, np.ndarray]:
    """What is known of the sites batch by batch, for each single matrix: ``[batches, *]``."""
    last = {s: np.moveaxis(np.asarray(x, np.float64), 0, -1) for s, x in by_site.items()}
    single = unstacked(last, sites)
    return {s: np.moveaxis(np.asarray(x), -1, 0) for s, x in single.items()}


def _active(what: Pass, sites: Sequence[Site], each: Sums, threshold: float) -> dict[str, np.ndarray]:
    i = what.thresholds.index(threshold)
    return {site: x[:, i] for site, x in _by_matrix(each.active, sites).items()}


def _l0(metric: named.CI_L0, what: Pass, sites: Sequence[Site], each: Sums) -> Named:
    for threshold in (metric.ci_alive_threshold, *(metric.also_at or ())):
        key = metric.key if threshold == metric.ci_alive_threshold else f"{metric.key}@{threshold:g}"
        active = _active(what, sites, each, threshold)
        for site, count in active.items():
            yield f"{key}/{site}", _per_position(count, each)
        names = [name for _, _, name in members_in_order(sites)]
        for group, members in group_sites(names, metric.groups or {}).items():
            yield f"{key}/{group}", _per_position(sum((active[s] for s in members), np.zeros(())), each)


def _language(key: str, each: Sums) -> Named:
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), each.language[key])
    for name, total in named_losses(key, wide).items():
        yield name, _per_position(total, each)


def _attention(key: str, each: Sums) -> Named:
    layers = {layer: np.asarray(x, np.float64) for layer, x in each.attention[key].items()}
    for layer, x in layers.items():
        yield f"{key}/{layer}", _per_position(x, each)
    yield key, _per_position(sum(layers.values(), np.zeros(())) / len(layers), each)
