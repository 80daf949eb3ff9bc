"""What an evaluation says of a language model, as rows of a verdict (method.md §10)."""

from collections.abc import Mapping, Sequence

from vpd.config import metrics as named
from vpd.config.metrics import AnyMetric
from vpd.evaluation.toy import VerdictRow, verdict_row

# Nats of cross-entropy that the unmasked decomposition may lose.
UNMASKED_LOSS = 0.02
WORDS = {
    "unmasked": "unmasked",
    "stoch_masked": "stochastic masks",
    "ci_masked": "importances as masks",
    "rounded_masked": "importances rounded",
}
# A masking, and the one with the same L0 that it must be better than.
RIVALS = {"stoch_masked": "stoch_shuffled", "ci_masked": "ci_shuffled"}
# Of the cross-entropy that its rival loses, the part that a masking may lose: less is no difference worth a tick.
OF_RIVAL = 0.9


def language_verdict(metrics: Mapping[str, float], listed: Sequence[AnyMetric]) -> list[VerdictRow]:
    """Cross-entropy under each masking, against the target's and against masks of equal L0 that ignore the input."""
    rows: list[VerdictRow] = []
    for metric in listed:
        if isinstance(metric, named.CEandKLLosses):
            rows += _masking_rows(metrics, metric.key)
        if isinstance(metric, named.CI_L0):
            total = sum(v for k, v in metrics.items() if k.startswith(f"{metric.key}/") and _is_site(k, metric))
            rows.append(verdict_row("L0 of all matrices", "", total, "", None))
    return rows


def _is_site(key: str, metric: named.CI_L0) -> bool:
    return key.removeprefix(f"{metric.key}/") not in (metric.groups or {})


def _masking_rows(metrics: Mapping[str, float], key: str) -> list[VerdictRow]:
    target = metrics[f"{key}/ce_target"]
    rows = [verdict_row("cross-entropy of the target", "", target, "", None)]
    for masking, words in WORDS.items():
        ce = metrics[f"{key}/ce_{masking}"]
        expected, ok = "", None
        if masking == "unmasked":
            bar = target + UNMASKED_LOSS
            expected, ok = f"≤ {bar:.3f}", ce <= bar
        elif masking in RIVALS:
            rival = metrics[f"{key}/ce_{RIVALS[masking]}"]
            bar = target + OF_RIVAL * max(0.0, rival - target)
            expected, ok = f"≤ {bar:.3f} ({OF_RIVAL:.0%} of what shuffled masks lose, {rival - target:.3f})", ce <= bar
        rows.append(verdict_row(f"cross-entropy, {words}", "", ce, expected, ok))
    return rows
