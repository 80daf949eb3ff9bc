"""What a decomposed induction transformer still does: with its important subcomponents alone, and without some."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vpd.data.induction import seen_before
from vpd.decomposition import SiteMask
from vpd.evaluation.accumulate import in_order
from vpd.evaluation.toy import Metrics, VerdictRow, verdict_row
from vpd.hosts import gathered
from vpd.targets import Induction, clean_forward, kl, masked_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances

# The bars of a decomposition that has found the induction heads.
TARGET_BAR, IMPORTANT_BAR, ABLATED_BAR, ELSEWHERE_BAR = 0.95, 0.90, 0.20, 0.10
# A subcomponent is important at a position above IMPORTANT, and belongs to induction where its mean importance at
# induction positions is higher than elsewhere by CONTRAST.
IMPORTANT, CONTRAST = 0.1, 0.1

Tree = TypeVar("Tree")
Tokens = Int[Array, "batch T"]
Removed = Mapping[str, Bool[np.ndarray, " _C"]]


class Sums(eqx.Module):
    """Sums over positions of a pass.

    Attributes:
        induction: number of positions whose token was seen before, with a next token.
        elsewhere: number of the other ones.
        correct: right next tokens at induction positions, ``{forward: count}``.
        ci_induction: lower CI summed over induction positions, ``{site: [C]}``.
        ci_elsewhere: over the others.
        l0: important subcomponents by position, summed over the batch, ``{site: [T]}``.
    """

    induction: Float[Array, ""]
    elsewhere: Float[Array, ""]
    correct: dict[str, Float[Array, ""]]
    ci_induction: dict[str, Float[Array, "..."]]
    ci_elsewhere: dict[str, Float[Array, "..."]]
    l0: dict[str, Float[Array, "..."]]


class Ablated(eqx.Module):
    """Sums over positions with some subcomponents removed: right next tokens, and KL from the target, in nats."""

    correct: Float[Array, ""]
    kl_induction: Float[Array, ""]
    kl_elsewhere: Float[Array, ""]


def _positions(tokens: Tokens) -> tuple[Bool[Array, "batch T"], Bool[Array, "batch T"]]:
    """Where induction can tell the next token, and the other positions that have a next token."""
    has_next = jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1
    seen = seen_before(tokens)
    return seen & has_next, ~seen & has_next


def _correct(logits: Float[Array, "batch T vocab"], tokens: Tokens, at: Bool[Array, "batch T"]) -> Float[Array, ""]:
    following = jnp.roll(tokens, -1, axis=1)
    return jnp.sum((jnp.argmax(logits, -1) == following) & at, dtype=jnp.float32)


def measure(problem: Problem, target: Induction, decomposition: Decomposition, tokens: Tokens) -> Sums:
    """Sums of one batch: the target, importances as masks, and important subcomponents alone (both without deltas)."""
    clean, _ = clean_forward(target, tokens)
    ci = lower_importances(problem, target, decomposition, tokens)
    important = {site: (x > IMPORTANT).astype(x.dtype) for site, x in ci.items()}
    induction, elsewhere = _positions(tokens)
    forwards = {"target": clean}
    for name, masks in (("ci_masked", ci), ("important_only", important)):
        site_masks = {site: SiteMask(mask) for site, mask in masks.items()}
        forwards[name] = masked_forward(target, decomposition.components, tokens, site_masks)

    def over(where: Bool[Array, "batch T"]) -> dict[str, Array]:
        return {site: jnp.sum(x, axis=(0, 1), where=where[..., None]) for site, x in ci.items()}

    return Sums(
        induction=jnp.sum(induction, dtype=jnp.float32),
        elsewhere=jnp.sum(elsewhere, dtype=jnp.float32),
        correct={name: _correct(logits, tokens, induction) for name, logits in forwards.items()},
        ci_induction=over(induction),
        ci_elsewhere=over(elsewhere),
        l0={site: jnp.sum(x, axis=(0, 2)) for site, x in important.items()},
    )


def ablate(target: Induction, decomposition: Decomposition, tokens: Tokens, kept: Mapping[str, Array]) -> Ablated:
    """Sums of one batch with the target less the subcomponents whose ``kept`` is 0 (all deltas in)."""
    clean, _ = clean_forward(target, tokens)
    one = jnp.ones(tokens.shape)
    masks = {site: SiteMask(jnp.broadcast_to(k, (*tokens.shape, k.shape[0])), one) for site, k in kept.items()}
    logits = masked_forward(target, decomposition.components, tokens, masks)
    induction, elsewhere = _positions(tokens)
    distance = kl(clean, logits)
    return Ablated(
        _correct(logits, tokens, induction), jnp.sum(distance, where=induction), jnp.sum(distance, where=elsewhere)
    )


@dataclass(frozen=True)
class Found:
    """What a pass says of induction.

    Attributes:
        metrics: flat scalars.
        verdict: rows with the bars.
        l0: mean number of important subcomponents by position, ``{site: [T]}``.
        contrast: mean CI at induction positions less that elsewhere, ``{site: [C]}``.
    """

    metrics: Metrics
    verdict: list[VerdictRow]
    l0: dict[str, Float[np.ndarray, " T"]]
    contrast: dict[str, Float[np.ndarray, " _C"]]


class InductionProbe:
    """Measures a decomposition in two passes over the same batches: what is important, then without it."""

    def __init__(self, problem: Problem, target: Induction) -> None:
        """Prepare the two programs."""
        self._target, self._sites = target, tuple(site.name for site in problem.sites)
        self._measure, self._ablate = jax.jit(partial(measure, problem)), jax.jit(ablate)

    def evaluate(self, decomposition: Decomposition, draw: Callable[[int], Tokens], n: int) -> Found:
        """Metrics and verdict over ``n`` batches.

        Args:
            decomposition: parameters to evaluate.
            draw: the batch of an index.
            n: how many.
        """
        sums = _total(self._measure(self._target, decomposition, draw(i)) for i in range(n))
        examples = n * draw(0).shape[0]
        contrast = {
            site: np.asarray(ci) / sums.induction - np.asarray(sums.ci_elsewhere[site]) / sums.elsewhere
            for site, ci in in_order(sums.ci_induction, self._sites).items()
        }
        removed: Removed = {site: x >= CONTRAST for site, x in contrast.items()}
        kept = {site: jnp.asarray(~gone, jnp.float32) for site, gone in removed.items()}
        ablated = _total(self._ablate(self._target, decomposition, draw(i), kept) for i in range(n))
        metrics = _metrics(sums, ablated, removed)
        l0 = {site: np.asarray(x) / examples for site, x in in_order(sums.l0, self._sites).items()}
        return Found(metrics, _verdict(metrics, removed), l0, contrast)


def _total(batches: Iterable[Tree]) -> Tree:
    """The sum of pytrees of sums, on the host."""
    return reduce(lambda a, b: jax.tree.map(np.add, a, b), (gathered(batch) for batch in batches))


def _metrics(sums: Sums, ablated: Ablated, removed: Removed) -> Metrics:
    metrics: Metrics = {
        f"induction/accuracy_{name}": float(count / sums.induction) for name, count in sums.correct.items()
    }
    metrics["induction/accuracy_ablated"] = float(ablated.correct / sums.induction)
    metrics["induction/kl_ablated"] = float(ablated.kl_induction / sums.induction)
    metrics["induction/kl_ablated_elsewhere"] = float(ablated.kl_elsewhere / sums.elsewhere)
    for site, gone in removed.items():
        metrics[f"induction/ablated/{site}"] = int(gone.sum())
        metrics[f"induction/ci_sum/{site}"] = float(sums.ci_induction[site].sum() / sums.induction)
        metrics[f"induction/ci_sum_elsewhere/{site}"] = float(sums.ci_elsewhere[site].sum() / sums.elsewhere)
    return metrics


def _verdict(metrics: Metrics, removed: Removed) -> list[VerdictRow]:
    """The bars, and at which sites the subcomponents of induction are."""
    bars = (
        ("accuracy of the target, repeated tokens", "accuracy_target", TARGET_BAR, True),
        (f"accuracy with CI > {IMPORTANT} alone", "accuracy_important_only", IMPORTANT_BAR, True),
        ("accuracy without the induction subcomponents", "accuracy_ablated", ABLATED_BAR, False),
        ("KL elsewhere without them, nats", "kl_ablated_elsewhere", ELSEWHERE_BAR, False),
    )
    rows: list[VerdictRow] = []
    for measure, key, bar, at_least in bars:
        value = metrics[f"induction/{key}"]
        holds = value >= bar if at_least else value <= bar
        rows.append(verdict_row(measure, "all sites", value, f"{'≥' if at_least else '≤'} {bar}", holds))
    for site, gone in removed.items():
        if gone.any():
            rows.append(verdict_row("induction subcomponents", site, int(gone.sum()), "", None))
    return rows
