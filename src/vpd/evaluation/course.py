"""What the records of a run say of its course, and the diagnoses that follow from it and from its vital signs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vpd.config import losses as named
from vpd.config.run import RunConfig
from vpd.evaluation.convergence import trend
from vpd.evaluation.diagnosis import Course, Diagnosis, diagnose
from vpd.evaluation.health import AdversaryHealth, Health, SiteHealth
from vpd.objective.build import schedule_from, term_from
from vpd.objective.minimality import ImportanceMinimality, anneal
from vpd.objective.total import Minimality

Record = Mapping[str, object]


def diagnose_run(
    config: RunConfig, evals: Sequence[Record], health: Health | None = None, step: int | None = None
) -> list[Diagnosis] | None:
    """Every failure that a run shows.

    Args:
        config: its run file.
        evals: records of its evaluations, by step.
        health: vital signs at ``step``; None takes the newest that were recorded.
        step: updates made; None takes that of the newest record. Later records are left out.

    Returns:
        The diagnoses; None where no vital signs were taken.
    """
    past = [record for record in evals if step is None or _step(record) <= step]
    if health is None:
        having = [record for record in past if "recon" in _vital(record)]
        if not having:
            return None
        health, step = health_from(_vital(having[-1])), _step(having[-1])
        past = [record for record in past if _step(record) <= step]
    if not health.adversaries:  # they are training state, which an opened run does not have
        same = (health_from(_vital(r)) for r in past if _step(r) == step and "recon" in _vital(r))
        health = replace(health, adversaries=next((recorded.adversaries for recorded in same), {}))
    return diagnose(health, course_of(config, past, step if step is not None else _step(past[-1])))


def course_of(config: RunConfig, evals: Sequence[Record], step: int) -> Course:
    """Trends, annealing and deltas of a run up to ``step``.

    Args:
        config: its run file.
        evals: records of its evaluations up to then.
        step: updates made.
    """
    pd = config.pd
    rate = schedule_from(pd.components_optimizer.lr_schedule)
    steps = [_step(record) for record in evals]
    l0 = [(t, x) for t, x in zip(steps, (_number(_vital(r).get("l0")) for r in evals), strict=True) if math.isfinite(x)]
    recon = list(zip(steps, _weighted_recon(config, evals), strict=True))
    begun = [(t, x) for t, x in recon if math.isfinite(x)]
    sparsity = [loss for loss in pd.loss_metrics if isinstance(loss, _SPARSITY)]
    deltas = [x for r in evals if math.isfinite(x := _number(_vital(r).get("delta")))]
    return Course(
        step,
        pd.steps,
        trend([t for t, _ in l0], [x for _, x in l0], rate, pd.steps),
        trend([t for t, _ in begun], [x for _, x in begun], rate, pd.steps),
        dict(_annealed(config, loss, step) for loss in sparsity),
        deltas,
        *([sparsity[0].key] if sparsity else []),
        faithful=any(isinstance(loss, named.FaithfulnessLoss) and loss.coeff > 0 for loss in pd.loss_metrics),
    )


_SPARSITY = named.ImportanceMinimalityLoss | named.SmoothL0ImportanceMinimalityLoss


def _annealed(config: RunConfig, loss: named.AnyLoss, step: int) -> tuple[str, tuple[float, float]]:
    """The power or width of a sparsity loss now, and at the end of training."""
    term = term_from(loss, config.pd, config.has_sequence, 1.0)
    assert isinstance(term, Minimality)
    penalty = term.penalty
    spec = penalty.p if isinstance(penalty, ImportanceMinimality) else penalty.gamma
    letter = "p" if isinstance(penalty, ImportanceMinimality) else "γ"
    now, final = (float(anneal(spec, fraction)) for fraction in (step / config.pd.steps, 1.0))
    return f"{letter} of {loss.key}", (now, final)


def _weighted_recon(config: RunConfig, evals: Sequence[Record]) -> list[float]:
    """Σ coeff · loss of the reconstruction terms, NaN before all of them are active."""
    terms = [(f"loss/{loss.key}", loss.coeff) for loss in config.pd.loss_metrics if isinstance(loss, named.ReconTerm)]
    if not terms:
        return [math.nan] * len(evals)
    return [sum(coeff * _number(_metrics(record).get(key)) for key, coeff in terms) for record in evals]


def health_from(record: Record) -> Health:
    """Vital signs as they were recorded."""
    recon, sites, adversaries = (record.get(key) for key in ("recon", "sites", "adversaries"))
    assert isinstance(recon, dict) and isinstance(sites, list) and isinstance(adversaries, dict)
    return Health(
        {str(name): _number(x) for name, x in recon.items()},
        [SiteHealth(**site) for site in sites],
        {str(key): AdversaryHealth(**one) for key, one in adversaries.items()},
    )


def _vital(record: Record) -> Record:
    found = record.get("health")
    return found if isinstance(found, dict) else {}


def _metrics(record: Record) -> Record:
    found = record.get("metrics")
    return found if isinstance(found, dict) else {}


def _step(record: Record) -> int:
    found = record.get("step")
    return found if isinstance(found, int) else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
