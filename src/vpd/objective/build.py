"""From the losses of a run file to the terms of the objective: one row of a table per class."""

from collections.abc import Callable
from dataclasses import dataclass

from vpd.config import losses as named
from vpd.config.metrics import CIHiddenActsReconLoss
from vpd.config.run import PD
from vpd.config.schedule import AdamSources, LRSchedule
from vpd.config.sources import StaticProbability as NamedProbability
from vpd.config.sources import resolved_scope
from vpd.decomposition import AllRouting, Routing, StaticProbability, UniformKSubset
from vpd.objective.adversary import AdamAscent, SignAscent
from vpd.objective.minimality import Anneal, Frequency, ImportanceMinimality, SmoothL0
from vpd.objective.recon import (
    Constant,
    FreshPGD,
    Live,
    Measure,
    Mixture,
    Persistent,
    ReconTerm,
    Rider,
    Source,
    Stochastic,
)
from vpd.objective.schedule import Schedule, first_active_step
from vpd.objective.total import Faithfulness, Minimality, Term


def schedule_from(config: LRSchedule) -> Schedule:
    """The schedule that a run file describes."""
    return Schedule(config.start_val, config.warmup_pct, config.final_val_frac, config.fn_type)


Compared = named.AnyLoss | CIHiddenActsReconLoss


@dataclass(frozen=True)
class Setting:
    """What a loss needs to know of the run around it."""

    pd: PD
    has_sequence: bool


@dataclass(frozen=True)
class Row:
    """A class of recon loss: its live sites, its mask source, its number of forwards, what it compares."""

    live: Live | Callable[[Compared], Live]
    source: Callable[[Compared, Setting], Source]
    n_samples: Callable[[Compared, Setting], int] = lambda loss, setting: 1
    measure: Measure = "output"


def _constant(value: int) -> Callable[[Compared, Setting], Source]:
    return lambda loss, setting: Constant(0 if value == 0 else 1)


def _stochastic(loss: Compared, setting: Setting) -> Source:
    return Stochastic(setting.pd.sampling)


def _fresh(loss: Compared, setting: Setting) -> Source:
    assert isinstance(loss, named.FreshAdversary)
    scope, n_sources = resolved_scope(loss.mask_scope, setting.has_sequence)
    return FreshPGD(loss.init, loss.step_size, loss.n_steps, scope, n_sources)


def _persistent(loss: Compared, setting: Setting) -> Source:
    assert isinstance(loss, named.PersistentAdversary)
    scope, n_sources = resolved_scope(loss.scope, setting.has_sequence)
    match loss.optimizer:
        case AdamSources(beta1=beta1, beta2=beta2, eps=eps):
            optimizer = AdamAscent(beta1, beta2, eps)
        case _:
            optimizer = SignAscent()
    return Persistent(
        optimizer=optimizer,
        lr=schedule_from(loss.optimizer.lr_schedule),
        scope=scope,
        n_sources=n_sources,
        n_warmup_steps=loss.n_warmup_steps,
        first_step=first_active_step(loss.start_frac, setting.pd.steps),
        sigmoid=loss.use_sigmoid_parameterization,
    )


def _mixture(loss: Compared, setting: Setting) -> Source:
    assert isinstance(loss, named.MergedStochasticPersistentReconLoss)
    persistent = _persistent(loss, setting)
    assert isinstance(persistent, Persistent)
    return Mixture(**vars(persistent), adv_fraction=loss.adv_fraction, sampling=setting.pd.sampling)


def _of_run(loss: Compared, setting: Setting) -> int:
    return setting.pd.n_mask_samples


def _own(loss: Compared, setting: Setting) -> int:
    assert isinstance(loss, named.PersistentAdversary | named.ChunkwiseSubsetReconLoss)
    return loss.n_samples


def _chunks(loss: Compared) -> Live:
    assert isinstance(loss, named.ChunkwiseSubsetReconLoss)
    return loss.sites_per_chunk


# The grid of method.md §4. Routing is not a column: a class that has it says so in the run file.
GRID: dict[str, Row] = {
    "UnmaskedReconLoss": Row("all", _constant(1)),
    "CIMaskedReconLoss": Row("all", _constant(0)),
    "CIMaskedReconSubsetLoss": Row("all", _constant(0)),
    "CIMaskedReconLayerwiseLoss": Row("each", _constant(0)),
    "CIHiddenActsReconLoss": Row("all", _constant(0), measure="hidden_acts"),
    "StochasticReconLoss": Row("all", _stochastic, _of_run),
    "StochasticReconSubsetLoss": Row("all", _stochastic, _of_run),
    "StochasticReconLayerwiseLoss": Row("each", _stochastic, _of_run),
    "ChunkwiseSubsetReconLoss": Row(_chunks, _stochastic, _own),
    "StochasticHiddenActsReconLoss": Row("all", _stochastic, _of_run, "hidden_acts"),
    "PGDReconLoss": Row("all", _fresh),
    "PGDReconSubsetLoss": Row("all", _fresh),
    "PGDReconLayerwiseLoss": Row("each", _fresh),
    "PersistentPGDReconLoss": Row("all", _persistent, _own),
    "PersistentPGDReconSubsetLoss": Row("all", _persistent, _own),
    "MergedStochasticPersistentReconLoss": Row("all", _mixture, _own),
}


def routing_from(loss: Compared) -> Routing:
    """The routing a class names; everywhere where it names none."""
    if not isinstance(loss, named.Routed):
        return AllRouting()
    return StaticProbability(loss.routing.p) if isinstance(loss.routing, NamedProbability) else UniformKSubset()


def recon_term(loss: Compared, pd: PD, has_sequence: bool, coeff: float) -> ReconTerm:
    """The grid point of a recon loss."""
    row, setting = GRID[loss.type], Setting(pd, has_sequence)
    return ReconTerm(
        name=loss.key,
        coeff=coeff,
        source=row.source(loss, setting),
        routing=routing_from(loss),
        live=row.live(loss) if callable(row.live) else row.live,
        n_samples=row.n_samples(loss, setting),
        measure=row.measure,
        rider=rider_from(loss),
    )


def rider_from(loss: Compared) -> Rider | None:
    """The rider of a recon loss, where the run file gives it one."""
    rider = loss.hidden_acts_reconstruction if isinstance(loss, named.ReconTerm) else None
    return None if rider is None else Rider(rider.coeff, rider.sites)


def term_from(loss: Compared, pd: PD, has_sequence: bool, coeff: float) -> Term:
    """The term that a loss of the run file describes, with the coefficient given."""
    match loss:
        case named.FaithfulnessLoss():
            return Faithfulness(loss.key, coeff)
        case named.ImportanceMinimalityLoss():
            p = Anneal(loss.pnorm, loss.p_anneal_final_p, loss.p_anneal_start_frac, loss.p_anneal_end_frac)
            return Minimality(loss.key, coeff, ImportanceMinimality(p, loss.beta, loss.eps))
        case named.SmoothL0ImportanceMinimalityLoss():
            gamma = Anneal(
                loss.gamma,
                loss.gamma_anneal_final_gamma,
                loss.gamma_anneal_start_frac,
                loss.gamma_anneal_end_frac,
            )
            penalty = loss.frequency
            frequency = None if penalty is None else Frequency(penalty.coeff, penalty.reference_datapoint_count)
            return Minimality(loss.key, coeff, SmoothL0(gamma, loss.beta, frequency))
        case _:
            return recon_term(loss, pd, has_sequence, coeff)


def terms_from(pd: PD, has_sequence: bool) -> tuple[Term, ...]:
    """All terms of the total, in the order of the run file."""
    return tuple(term_from(loss, pd, has_sequence, loss.coeff) for loss in pd.loss_metrics)
