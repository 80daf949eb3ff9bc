"""What runs reached by their own last evaluations, and the front of sparsity against adversarial reconstruction."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from vpd.config import metrics as named
from vpd.config.losses import FreshAdversary, PersistentAdversary
from vpd.config.run import RunConfig
from vpd.evaluation.agreement import pareto_front
from vpd.evaluation.run_records import read_records
from vpd.evaluation.scalars import budget_key

Values = Mapping[str, float]
KINDS = ("adversarial probe", "persistent adversary", "stochastic masks")
STOCHASTIC = (
    "StochasticReconLoss",
    "StochasticReconSubsetLoss",
    "StochasticReconLayerwiseLoss",
    "ChunkwiseSubsetReconLoss",
)


@dataclass(frozen=True)
class Outcome:
    """A run's last value of every metric, the step of its last evaluation, and whether that called it solved."""

    step: int | None
    metrics: Values
    solved: bool | None


@dataclass(frozen=True)
class TradeOff:
    """Sparsity against reconstruction, lower is better on both.

    Attributes:
        l0: what the first axis is.
        recon: what the second axis is: the key of the metric.
        kind: ``adversarial probe``, ``persistent adversary`` or ``stochastic masks``.
        runs: indices of the runs that have both.
        points: ``[n, 2]``.
        front: which of them no other is better than.
    """

    l0: str
    recon: str
    kind: str
    runs: tuple[int, ...]
    points: Float[np.ndarray, "n 2"]
    front: Bool[np.ndarray, " n"]


def last_outcome(path: Path) -> Outcome:
    """What a run directory's evaluations say; nothing where it had none."""
    if not (path / "metrics.jsonl").is_file():
        return Outcome(None, {}, None)
    metrics: dict[str, float] = {}
    step, solved = None, None
    # A slow metric is not in every evaluation.
    for record in read_records(path).eval:
        values, rows, at = record.get("metrics"), record.get("verdict"), record.get("step")
        if isinstance(values, dict):
            metrics |= {key: float(v) for key, v in values.items() if isinstance(v, int | float)}
        if isinstance(rows, list) and rows:
            solved = all(isinstance(row, dict) and row.get("ok") is not False for row in rows)
        step = at if isinstance(at, int) else step
    return Outcome(step, metrics, solved)


def trade_off(
    configs: Sequence[RunConfig], sites: Sequence[Sequence[str]], outcomes: Sequence[Outcome]
) -> TradeOff | None:
    """The front over the runs that have CI_L0 and the hardest reconstruction that two of them share.

    A fresh adversary is preferred to a persistent one, whose sources were trained for the run it is measured in, and
    both to random masks.

    Args:
        configs: of each run.
        sites: that each run decomposes.
        outcomes: of each run.

    Returns:
        The front, None where no two runs have the same figures.
    """
    l0 = [_l0(*run) for run in zip(configs, sites, outcomes, strict=True)]
    keys = dict.fromkeys(found for config in configs for found in _recon_keys(config))
    for kind, key in sorted(keys, key=lambda found: KINDS.index(found[0])):
        values = [outcome.metrics.get(key, math.nan) for outcome in outcomes]
        having = [i for i, pair in enumerate(zip(l0, values, strict=True)) if all(map(math.isfinite, pair))]
        if len(having) > 1:
            points = np.array([[l0[i], values[i]] for i in having])
            return TradeOff(_l0_name(configs[having[0]]), key, kind, tuple(having), points, pareto_front(points))
    return None


def _recon_keys(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Kind and key of the reconstruction metrics that a run evaluates."""
    metrics = config.eval.metrics if config.eval else ()
    for entry in (*metrics, *config.pd.loss_metrics):
        if isinstance(entry, FreshAdversary):
            trained = entry in config.pd.loss_metrics
            probe = budget_key(entry.key, entry.n_steps, entry.step_size)
            yield KINDS[0], f"loss/{entry.key if trained else probe}"
        elif isinstance(entry, named.PGDReconProbe):
            hardest = max(entry.budgets)
            yield KINDS[0], f"loss/{budget_key(entry.key, hardest, entry.step_size)}/worst"
        elif isinstance(entry, PersistentAdversary):
            yield KINDS[1], f"loss/{entry.key}"
        elif entry.type in STOCHASTIC:
            yield KINDS[2], f"loss/{entry.key}"


def _l0_metric(config: RunConfig) -> named.CI_L0 | None:
    metrics = config.eval.metrics if config.eval else ()
    return next((metric for metric in metrics if isinstance(metric, named.CI_L0)), None)


def _l0(config: RunConfig, sites: Sequence[str], outcome: Outcome) -> float:
    """CI_L0 summed over the run's sites; NaN where it was not evaluated."""
    metric = _l0_metric(config)
    if metric is None:
        return math.nan
    return sum(outcome.metrics.get(f"{metric.key}/{site}", math.nan) for site in sites)


def _l0_name(config: RunConfig) -> str:
    metric = _l0_metric(config)
    assert metric is not None
    return f"L0 summed over sites (lower CI > {metric.ci_alive_threshold:g})"
