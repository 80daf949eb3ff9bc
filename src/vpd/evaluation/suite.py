"""From the metrics of a run file to numbers, a verdict, and figures."""

from collections.abc import Callable, Mapping, Sequence
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
from vpd.data.feed import Batches, given_from
from vpd.decomposition import members_in_order
from vpd.evaluation.accumulate import Pass, Sums, accumulate, added, in_order, sums_in_order
from vpd.evaluation.attention_patterns import AttentionMetric, check_attention
from vpd.evaluation.induction import Found, InductionProbe
from vpd.evaluation.l0 import group_sites
from vpd.evaluation.language import language_verdict
from vpd.evaluation.maskings import as_metrics
from vpd.evaluation.samples import Writer
from vpd.evaluation.toy import (
    FeatureToy,
    Metrics,
    VerdictRow,
    identity_metrics,
    match_to_truth,
    probe_batch,
    truth_metrics,
    truth_verdict,
)
from vpd.objective import AdversaryState, Faithfulness, Minimality, Persistent, ReconTerm
from vpd.objective.build import recon_term, term_from
from vpd.objective.total import HIDDEN, Term
from vpd.targets import TMS, Induction, LanguageModel, ResidMLP, Target
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances

ALIVE_MEAN_CI = 1e-6
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
    """

    step: int
    metrics: Metrics
    verdict: list[VerdictRow]
    sums: Sums
    single_features: dict[str, Float[np.ndarray, "n_features _C"]] = field(default_factory=dict)
    induction: Found | None = None

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
        self, config: RunConfig, problem: Problem, target: Target, batches: Batches, adversaries: bool = True
    ) -> None:
        """Turn the metrics into one accumulating program.

        Args:
            config: with an ``eval`` block.
            problem: the static part of the run.
            target: the frozen network.
            batches: evaluation batch of (seed, index).
            adversaries: False where only the decomposition was loaded; persistent terms are then left out.
        """
        assert config.eval is not None
        self._config, self._eval, self._problem, self._target = config, config.eval, problem, target
        sites = tuple(name for _, _, name in members_in_order(problem.sites))
        self._terms = {key: t for key, t in _terms(config, problem).items() if adversaries or not _persistent(t)}
        self.what = _pass(self._terms, config.eval.metrics)
        for key, metric in self.what.attention:
            assert isinstance(target, LanguageModel)
            check_attention(f"eval.metrics {key}", metric, target)
        self._run = jax.jit(partial(accumulate, self.what, problem, batches))
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
        go_on: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """One pass on the next batches of the evaluation stream.

        Args:
            decomposition: parameters after ``step`` updates.
            adversaries: persistent sources by term; terms that have none here are left out.
            step: updates made.
            go_on: called between the parts of the pass, which what it raises leaves.
        """
        n = self._eval.n_steps
        first = -(-step // self._eval.every) * n
        seed = jnp.asarray(self._config.pd.seed, jnp.uint32)
        summed: list[Sums] = []
        faithfulness = 0.0
        for i in range(n):
            go_on()
            numbers = (jnp.asarray(v, jnp.int32) for v in (step, first, i))
            given = given_from(self._batches, first + i, 1)
            device = self._run(self._target, decomposition, dict(adversaries), *numbers, seed, given)
            one, loss = jax.device_get(device)
            summed = [added(summed[0], one) if summed else one]
            faithfulness += float(loss)
        go_on()
        sums = sums_in_order(summed[0], self._problem.sites)
        found = Evaluation(step, self._scalars(sums, faithfulness, step), [], sums)
        if isinstance(self._target, TMS | ResidMLP):
            self._judge(found, self._target, decomposition)
        if isinstance(self._target, LanguageModel):
            found.verdict += language_verdict(found.metrics, self._eval.metrics)
        if self._induction is not None:
            found.induction = self._induction.evaluate(
                decomposition, lambda i: self._batches(seed, jnp.asarray(first + i, jnp.int32)), n
            )
            found.metrics |= found.induction.metrics
            found.verdict += found.induction.verdict
        return found

    def _judge(self, found: Evaluation, target: FeatureToy, decomposition: Decomposition) -> None:
        """Add what the known mechanisms of a toy say."""
        lower = jax.device_get(self._probe(target, decomposition, probe_batch(target)))
        found.single_features = {site: np.asarray(ci, np.float32) for site, ci in in_order(lower, self._sites).items()}
        truth = match_to_truth(target, decomposition, found.single_features)
        errors = identity_metrics(self._eval.metrics, found.single_features)
        found.metrics |= errors | truth_metrics(truth)
        found.verdict += truth_verdict(target, truth, found.single_features)

    def _scalars(self, sums: Sums, faithfulness: float, step: int) -> Metrics:
        N = float(sums.positions)
        metrics: Metrics = {}
        for key, term in self._terms.items():
            match term:
                case Faithfulness():
                    metrics[f"loss/{key}"] = faithfulness
                case Minimality(penalty=penalty):
                    S = {site: jnp.asarray(S) for site, S in sums.minimality[key].items()}
                    metrics[f"loss/{key}"] = float(penalty.loss(S, jnp.asarray(N, jnp.float32))[0])
                case ReconTerm(measure="hidden_acts"):
                    errors, elements = sums.hidden_errors[key], sums.hidden_elements[key]
                    metrics[f"loss/{key}"] = float(sum(errors.values()) / sum(elements.values()))
                    metrics |= {f"{key}/{s}": float(errors[s] / elements[s]) for s in errors}
                case ReconTerm(source=Persistent(first_step=first_step)) if step < first_step:
                    pass  # its sources rest
                case ReconTerm():
                    metrics[f"loss/{key}"] = float(sums.recon[key]) / N
                    metrics |= {f"loss/{key}/{HIDDEN}": float(sums.riders[key]) / N} if term.rider else {}
        for metric in self._eval.metrics:
            match metric:
                case named.CI_L0():
                    metrics |= self._l0(metric, sums, N)
                case named.CIMeanPerComponent():
                    alive = {s: int(np.sum(sums.ci[s] / N > ALIVE_MEAN_CI)) for s in self._sites}
                    metrics |= {f"{metric.key}/{s}/alive": n for s, n in alive.items()}
                case named.ComponentActivationDensity():
                    i = self.what.thresholds.index(metric.ci_alive_threshold)
                    firing = {s: int(np.sum(sums.active[s][i] / N > ALIVE_RATE)) for s in self._sites}
                    metrics |= {f"{metric.key}/{s}/firing": n for s, n in firing.items()}
                    metrics[f"{metric.key}/positions"] = int(N)
                case named.CEandKLLosses():
                    losses = jax.tree.map(lambda x: x / N, sums.language[metric.key])
                    metrics |= as_metrics(metric.key, losses)
                case named.AttnPatterns():
                    layers = {layer: float(x) / N for layer, x in sums.attention[metric.key].items()}
                    metrics |= {f"{metric.key}/{layer}": x for layer, x in layers.items()}
                    metrics[metric.key] = sum(layers.values()) / max(1, len(layers))
                case _:
                    pass
        return metrics

    def _l0(self, metric: named.CI_L0, sums: Sums, N: float) -> Metrics:
        i = self.what.thresholds.index(metric.ci_alive_threshold)
        counts = {site: float(np.sum(sums.active[site][i])) / N for site in self._sites}
        groups = group_sites(self._sites, metric.groups or {})
        l0 = counts | {group: sum(counts[s] for s in members) for group, members in groups.items()}
        return {f"{metric.key}/{name}": value for name, value in l0.items()}


def _terms(config: RunConfig, problem: Problem) -> dict[str, Term]:
    """Losses trained on, then losses named as metrics, by their key in the results; probes carry their budget."""
    assert config.eval is not None
    terms: dict[str, Term] = {term.name: term for term in problem.terms}
    for metric in config.eval.metrics:
        if isinstance(metric, named.CIHiddenActsReconLoss):
            terms[metric.key] = recon_term(metric, config.pd, config.has_sequence, 1.0)
        elif isinstance(metric, FreshAdversary):
            terms[budget_key(metric)] = term_from(metric, config.pd, config.has_sequence, 1.0)
        elif isinstance(metric, Trainable) and metric.key not in terms:
            terms[metric.key] = term_from(metric, config.pd, config.has_sequence, 1.0)
    return terms


def budget_key(metric: FreshAdversary) -> str:
    """A probe's key: its name or type, and the number and size of its ascents."""
    return f"{metric.key}_{metric.n_steps}x{metric.step_size:g}"


def _pass(terms: Mapping[str, Term], metrics: Sequence[AnyMetric]) -> Pass:
    recon = [(key, term) for key, term in terms.items() if isinstance(term, ReconTerm)]
    thresholds = {
        m.ci_alive_threshold for m in metrics if isinstance(m, named.CI_L0 | named.ComponentActivationDensity)
    }
    histograms = [m.n_batches_accum for m in metrics if isinstance(m, named.CIHistograms)]
    return Pass(
        recon=tuple((key, term) for key, term in recon if term.measure == "output"),
        hidden_acts=tuple((key, term) for key, term in recon if term.measure == "hidden_acts"),
        minimality=tuple((key, term) for key, term in terms.items() if isinstance(term, Minimality)),
        thresholds=tuple(sorted(thresholds | {0.0})),
        histogram_batches=max(histograms, default=0),
        language=tuple((m.key, m.rounding_threshold) for m in metrics if isinstance(m, named.CEandKLLosses)),
        attention=tuple((m.key, attention_metric(m)) for m in metrics if isinstance(m, named.AttnPatterns)),
    )


def attention_metric(metric: named.AttnPatterns) -> AttentionMetric:
    """Where a metric finds queries and keys, and how it masks."""
    fused = metric.c_attn_path is not None
    queries, keys = (metric.c_attn_path, None) if fused else (metric.q_proj_path, metric.k_proj_path)
    assert queries is not None
    masking = "ci_masked" if isinstance(metric, named.CIMaskedAttnPatternsReconLoss) else "stoch_masked"
    return AttentionMetric(queries, keys, metric.n_heads, masking)


def _persistent(term: Term) -> bool:
    return isinstance(term, ReconTerm) and isinstance(term.source, Persistent)
