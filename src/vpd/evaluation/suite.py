"""From the metrics of a run file to numbers, a verdict, and figures."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vpd.config import metrics as named
from vpd.config.losses import FreshAdversary
from vpd.config.losses import Term as Trainable
from vpd.config.metrics import AnyMetric
from vpd.config.run import RunConfig
from vpd.config.sources import resolved_scope
from vpd.data.feed import Batches, given_from
from vpd.decomposition import ComponentSet, members_in_order
from vpd.evaluation.accumulate import Pass, Sums, accumulate, added, in_order, sums_in_order, without_channels
from vpd.evaluation.attention_patterns import AttentionMetric, check_attention
from vpd.evaluation.health import ALIVE_MEAN_CI, IMPORTANT, Health, health_of, measure_health
from vpd.evaluation.induction import Found, InductionProbe
from vpd.evaluation.intervals import Mean, bootstrap
from vpd.evaluation.language import language_verdict
from vpd.evaluation.samples import Writer
from vpd.evaluation.scalars import batch_means, budget_key, total_l0
from vpd.evaluation.toy import (
    FeatureToy,
    Metrics,
    VerdictRow,
    identity_metrics,
    match_to_truth,
    mechanisms,
    probe_batch,
    truth_metrics,
    truth_verdict,
)
from vpd.evaluation.weights import (
    BySite,
    WeightSquares,
    faithfulness_of,
    per_site_metrics,
    rank_metrics,
    relative_delta,
    relative_deltas,
    singular_values,
)
from vpd.hosts import gathered, several
from vpd.objective import AdversaryState, Faithfulness, Minimality, Persistent, ReconTerm
from vpd.objective.build import recon_term, term_from
from vpd.objective.recon import FreshPGD
from vpd.objective.total import Term
from vpd.targets import TMS, Induction, LanguageModel, ResidMLP, Target, frozen_weights
from vpd.targets.base import Batch
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances

# A subcomponent fires where it does so more often than once in a million positions.
ALIVE_RATE = 1e-6


@dataclass
class Evaluation:
    """What one pass found.

    Attributes:
        step: updates made when it was taken.
        metrics: flat scalars.
        verdict: rows ``{measure, site, value, expected, ok}``; empty where nothing is known of the target.
        sums: raw sums of the pass, for figures.
        single_features: lower CI for each feature alone, ``{site: [n_features, C]}``; empty for other targets.
        induction: what an induction transformer still does; None for other targets.
        intervals: 95 % bootstrap intervals over the batches, of the metrics that are means over them.
        l0: subcomponents of all sites with a lower CI above 0.1, a position.
        delta: ``‖W − V U‖ / ‖W‖`` of all sites together.
        health: vital signs, where slow metrics were computed.
    """

    step: int
    metrics: Metrics
    verdict: list[VerdictRow]
    sums: Sums
    single_features: dict[str, Float[np.ndarray, "n_features _C"]] = field(default_factory=dict)
    induction: Found | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    l0: float = math.nan
    delta: float = math.nan
    health: Health | None = None

    @property
    def vital_signs(self) -> dict[str, object]:
        """What the record of an evaluation keeps for diagnoses."""
        return {"l0": self.l0, "delta": self.delta} | (self.health.as_record() if self.health else {})

    @property
    def solved(self) -> bool | None:
        """Whether every bar of the verdict holds; None without a verdict."""
        return all(row["ok"] is not False for row in self.verdict) if self.verdict else None

    @property
    def headline(self) -> str:
        """The verdict in two words, or how many bars are missed where no mechanism is known that could be found."""
        if self.single_features or self.induction is not None:
            return "solved" if self.solved else "not solved"
        judged = [row["ok"] for row in self.verdict if row["ok"] is not None]
        missed = judged.count(False)
        return f"{missed} of {len(judged)} bars missed" if missed else "every bar holds"


class Suite:
    """The evaluation of one run: compiled once, called at every pass."""

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        target: Target,
        batches: Batches,
        adversaries: bool = True,
        trained: Collection[str] | None = None,
    ) -> None:
        """Turn the metrics into one accumulating program.

        Args:
            config: with an ``eval`` block.
            problem: the static part of the run.
            target: the frozen network.
            batches: evaluation batch of (seed, index).
            adversaries: False where only the decomposition was loaded; persistent terms are then left out.
            trained: which of the losses trained on are evaluated; None for all.
        """
        assert config.eval is not None
        self._config, self._eval, self._problem, self._target = config, config.eval, problem, target
        sites = tuple(name for _, _, name in members_in_order(problem.sites))
        terms = [term for term in problem.terms if trained is None or term.name in trained]
        self._terms = {key: t for key, t in _terms(config, terms).items() if adversaries or not _persistent(t)}
        self.what = _pass(self._terms, config.eval.metrics, config.has_sequence)
        for key, metric in self.what.attention:
            assert isinstance(target, LanguageModel | Induction)
            check_attention(f"eval.metrics {key}", metric, target)
        self._run = jax.jit(partial(accumulate, self.what, problem, batches))
        toy = target if isinstance(target, TMS | ResidMLP) else None
        self._known = mechanisms(toy, sites) if toy is not None else {}
        probe = probe_batch(toy) if toy is not None else None
        self._health = jax.jit(partial(measure_health, problem, batches, probe))
        self._ranks = jax.jit(_singular_values(problem))
        self._sites = sites
        self._batches = batches
        self._probe = jax.jit(partial(lower_importances, problem))
        self.writer = self._writer()
        self._induction = InductionProbe(problem, target) if isinstance(target, Induction) else None

    def _writer(self) -> Writer | None:
        """What continues text under the maskings, where CEandKLLosses says how importances are rounded."""
        thresholds = [m.rounding_threshold for m in self._eval.metrics if isinstance(m, named.CEandKLLosses)]
        if not isinstance(self._target, LanguageModel) or not thresholds:
            return None
        return Writer(self._problem, self._target, self._batches, thresholds[0], self._config.pd.seed)

    def evaluate(
        self,
        decomposition: Decomposition,
        adversaries: Mapping[str, AdversaryState],
        step: int,
        slow: bool = True,
        go_on: Callable[[], None] = lambda: None,
        judge: bool = True,
    ) -> Evaluation:
        """One pass on the next batches of the evaluation stream.

        Args:
            decomposition: parameters after ``step`` updates.
            adversaries: persistent sources by term; terms that have none here are left out.
            step: updates made.
            slow: whether slow metrics are computed as well.
            go_on: called between the parts of the pass, which what it raises leaves.
            judge: False takes what is named alone: no vital signs, and nothing that only a verdict needs.
        """
        n = self._eval.n_steps
        first = -(-step // self._eval.every) * n
        seed = jnp.asarray(self._config.pd.seed, jnp.uint32)
        summed: list[Sums] = []
        each: list[Sums] = []
        weights: list[WeightSquares] = []
        for i in range(n):
            go_on()
            numbers = (jnp.asarray(v, jnp.int32) for v in (step, first, i))
            given = given_from(self._batches, first + i, 1)
            device = self._run(self._target, decomposition, dict(adversaries), *numbers, seed, given)
            one, squares = gathered(device)
            weights = weights or [squares]
            each.append(gathered(without_channels(one)))
            summed = [added(summed[0], one) if summed else one]
        go_on()
        sites, squares = self._problem.sites, weights[0]
        sums = sums_in_order(summed[0], sites)
        rows = jax.tree.map(lambda *parts: np.stack(parts), *each)
        means = batch_means(self._eval.metrics, self._terms, self.what, sites, rows, step)
        found = Evaluation(step, self._scalars(sums, squares, means), [], sums)
        found.intervals = bootstrap(means, self._config.pd.seed)
        found.delta = relative_delta(squares)
        found.l0 = total_l0(self.what, sites, rows, IMPORTANT).value
        if slow:
            batch = self._batches(seed, jnp.asarray(first, jnp.int32))
            found.metrics |= self._slow_scalars(decomposition, batch)
            go_on()
        if slow and judge:
            given = given_from(self._batches, first, n)
            stretch = (jnp.asarray(v, jnp.int32) for v in (first, n))
            health = self._health(self._target, decomposition, dict(adversaries), *stretch, seed, given)
            deltas = relative_deltas(sites, squares)
            signs, moved = gathered(health)
            found.health = health_of(self._problem, signs, moved, deltas, self._known, step)
        named_alone = any(isinstance(metric, named.IdentityCIError) for metric in self._eval.metrics)
        if isinstance(self._target, TMS | ResidMLP) and (judge or named_alone):
            self._judge(found, self._target, decomposition)
        if isinstance(self._target, LanguageModel):
            found.verdict += language_verdict(found.metrics, self._eval.metrics)
        if self._induction is not None and judge:
            found.induction = self._induction.evaluate(
                decomposition, lambda i: self._batches(seed, jnp.asarray(first + i, jnp.int32)), n
            )
            found.metrics |= found.induction.metrics
            found.verdict += found.induction.verdict
        return found

    def _judge(self, found: Evaluation, target: FeatureToy, decomposition: Decomposition) -> None:
        """Add what the known mechanisms of a toy say."""
        lower = gathered(self._probe(target, decomposition, probe_batch(target)))
        found.single_features = {site: np.asarray(ci, np.float32) for site, ci in in_order(lower, self._sites).items()}
        if several():
            target, decomposition = gathered((target, decomposition))
        truth = match_to_truth(target, decomposition, found.single_features)
        errors = identity_metrics(self._eval.metrics, found.single_features)
        found.metrics |= errors | truth_metrics(truth)
        found.verdict += truth_verdict(target, truth, found.single_features)

    def _scalars(self, sums: Sums, squares: WeightSquares, means: Mapping[str, Mean]) -> Metrics:
        """Scalars of the pass: means over its batches, then what is a function of all of them or of the weights."""
        N = float(sums.positions)
        metrics: Metrics = {}
        for key, term in self._terms.items():
            match term:
                case Faithfulness():
                    metrics[f"loss/{key}"] = faithfulness_of(self._problem.sites, squares)
                case Minimality(penalty=penalty):
                    S = {site: jnp.asarray(S) for site, S in sums.minimality[key].items()}
                    metrics[f"loss/{key}"] = float(penalty.loss(S, jnp.asarray(N, jnp.float32))[0])
                case _:
                    pass
        metrics |= {name: mean.value for name, mean in means.items()}
        for metric in self._eval.metrics:
            match metric:
                case named.CIMeanPerComponent():
                    alive = {s: int(np.sum(sums.ci[s] / N > ALIVE_MEAN_CI)) for s in self._sites}
                    metrics |= {f"{metric.key}/{s}/alive": n for s, n in alive.items()}
                case named.ComponentActivationDensity():
                    i = self.what.thresholds.index(metric.ci_alive_threshold)
                    firing = {s: int(np.sum(sums.active[s][i] / N > ALIVE_RATE)) for s in self._sites}
                    metrics |= {f"{metric.key}/{s}/firing": n for s, n in firing.items()}
                    metrics[f"{metric.key}/positions"] = int(N)
                case named.FaithfulnessPerSite():
                    metrics |= per_site_metrics(metric.key, self._problem.sites, squares)
                case _:
                    pass
        return metrics

    def _slow_scalars(self, decomposition: Decomposition, batch: Batch) -> Metrics:
        """What is too dear for every pass."""
        keys = [metric.key for metric in self._eval.metrics if isinstance(metric, named.EffectiveRank)]
        values = self._ranks(self._target, decomposition.components, batch) if keys else {}
        found = (rank_metrics(key, self._problem.sites, values) for key in keys)
        return {name: value for metrics in found for name, value in metrics.items()}


def _terms(config: RunConfig, trained: Sequence[Term]) -> dict[str, Term]:
    """Losses trained on, then losses named as metrics, by their key in the results; probes carry their budget."""
    assert config.eval is not None
    terms: dict[str, Term] = {term.name: term for term in trained}
    for metric in config.eval.metrics:
        if isinstance(metric, named.CIHiddenActsReconLoss):
            terms[metric.key] = recon_term(metric, config.pd, config.has_sequence, 1.0)
        elif isinstance(metric, FreshAdversary):
            terms[budget_key(metric.key, metric.n_steps, metric.step_size)] = term_from(
                metric, config.pd, config.has_sequence, 1.0
            )
        elif isinstance(metric, Trainable) and metric.key not in terms:
            terms[metric.key] = term_from(metric, config.pd, config.has_sequence, 1.0)
    return terms


def _pass(terms: Mapping[str, Term], metrics: Sequence[AnyMetric], has_sequence: bool) -> Pass:
    recon = [(key, term) for key, term in terms.items() if isinstance(term, ReconTerm)]
    thresholds = {
        m.ci_alive_threshold for m in metrics if isinstance(m, named.CI_L0 | named.ComponentActivationDensity)
    }
    thresholds |= {also for m in metrics if isinstance(m, named.CI_L0) for also in m.also_at or ()}
    histograms = [m.n_batches_accum for m in metrics if isinstance(m, named.CIHistograms)]
    return Pass(
        recon=tuple((key, term) for key, term in recon if term.measure == "output"),
        hidden_acts=tuple((key, term) for key, term in recon if term.measure == "hidden_acts"),
        minimality=tuple((key, term) for key, term in terms.items() if isinstance(term, Minimality)),
        thresholds=tuple(sorted(thresholds | {0.0, IMPORTANT})),
        histogram_batches=max(histograms, default=0),
        language=tuple((m.key, m.rounding_threshold) for m in metrics if isinstance(m, named.CEandKLLosses)),
        attention=tuple((m.key, attention_metric(m)) for m in metrics if isinstance(m, named.AttnPatterns)),
        probes=tuple(p for m in metrics if isinstance(m, named.PGDReconProbe) for p in _probes(m, has_sequence)),
    )


def _probes(metric: named.PGDReconProbe, has_sequence: bool) -> Iterator[tuple[str, ReconTerm, int]]:
    """A fresh adversary of each budget, with the number of its restarts."""
    scope, n_sources = resolved_scope(metric.mask_scope, has_sequence)
    for n_steps in metric.budgets:
        key = budget_key(metric.key, n_steps, metric.step_size)
        source = FreshPGD("random", metric.step_size, n_steps, scope, n_sources)
        yield key, ReconTerm(key, 1.0, source), metric.restarts


def _singular_values(problem: Problem) -> Callable[[Target, ComponentSet, Batch], dict[str, BySite]]:
    def of(target: Target, components: ComponentSet, batch: Batch) -> dict[str, BySite]:
        return singular_values(problem.sites, frozen_weights(target, batch, problem.sites), components)

    return of


def attention_metric(metric: named.AttnPatterns) -> AttentionMetric:
    """Where a metric finds queries and keys, and how it masks."""
    fused = metric.c_attn_path is not None
    queries, keys = (metric.c_attn_path, None) if fused else (metric.q_proj_path, metric.k_proj_path)
    assert queries is not None
    masking = "ci_masked" if isinstance(metric, named.CIMaskedAttnPatternsReconLoss) else "stoch_masked"
    return AttentionMetric(queries, keys, metric.n_heads, masking)


def _persistent(term: Term) -> bool:
    return isinstance(term, ReconTerm) and isinstance(term.source, Persistent)
