"""One pass over evaluation batches in one program: sums on the device, weighted by positions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vpd.data.feed import Batches, Given, in_program
from vpd.decomposition import Site, unstacked
from vpd.evaluation.attention_patterns import AttentionMetric, attention_divergence
from vpd.evaluation.maskings import MaskedLosses, masked_losses
from vpd.evaluation.weights import WeightSquares, weight_squares
from vpd.objective import AdversaryState, Minimality, ReconTerm, Scene
from vpd.objective.recon import hidden_act_errors, recon_forwards, recon_parts, site_masks
from vpd.randomness import Seed, stream
from vpd.targets import Target, frozen_weights, masked_site_outputs, recorded_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, cast_compute, importances, leading_shape

Value = TypeVar("Value")

HISTOGRAM_BINS = 50

# Sums are made on the device and read on the host.
Count = Float[Array | np.ndarray, ""]
Counts = Float[Array | np.ndarray, "..."]


@dataclass(frozen=True)
class Pass:
    """What one pass accumulates.

    Attributes:
        recon: output-divergence terms by key.
        hidden_acts: hidden-activation terms by key, reported per site.
        minimality: sparsity losses by key.
        thresholds: lower CI above one of these counts as active.
        histogram_batches: batches that enter the histograms.
        language: CEandKLLosses by key, each with its rounding threshold.
        attention: attention-pattern divergences by key.
        probes: fresh adversaries by key, each with its number of restarts.
    """

    recon: tuple[tuple[str, ReconTerm], ...] = ()
    hidden_acts: tuple[tuple[str, ReconTerm], ...] = ()
    minimality: tuple[tuple[str, Minimality], ...] = ()
    thresholds: tuple[float, ...] = (0.0,)
    histogram_batches: int = 0
    language: tuple[tuple[str, float], ...] = ()
    attention: tuple[tuple[str, AttentionMetric], ...] = ()
    probes: tuple[tuple[str, ReconTerm, int], ...] = ()


class Sums(eqx.Module):
    """Sums over the positions of a pass.

    Attributes:
        positions: how many.
        recon: divergence by term.
        riders: hidden-activation errors by term with a rider, weighted like its divergence.
        hidden_errors: squared errors ``{term: {site: ·}}``, of a stack one a matrix.
        hidden_elements: numbers of elements likewise.
        minimality: ``{term: {site: S_c [C]}}``.
        active: ``{site: [thresholds, C]}``, positions in which a subcomponent is above each threshold.
        ci: ``{site: [C]}``, summed lower CI.
        histogram: ``{site: [bins]}`` of lower CI over [0, 1].
        language: masked losses by key, weighted by positions.
        attention: divergence of attention patterns by key and layer, likewise.
        probes: ``{probe: {worst, mean}}`` over the restarts of a batch, likewise.
    """

    positions: Count
    recon: Mapping[str, Count]
    riders: Mapping[str, Count]
    hidden_errors: Mapping[str, Mapping[str, Counts]]
    hidden_elements: Mapping[str, Mapping[str, Counts]]
    minimality: Mapping[str, Mapping[str, Counts]]
    active: Mapping[str, Counts]
    ci: Mapping[str, Counts]
    histogram: Mapping[str, Counts]
    language: Mapping[str, MaskedLosses] = eqx.field(default_factory=dict)
    attention: Mapping[str, Mapping[str, Count]] = eqx.field(default_factory=dict)
    probes: Mapping[str, Mapping[str, Count]] = eqx.field(default_factory=dict)


def in_order(by_site: Mapping[str, Value], sites: Iterable[str]) -> dict[str, Value]:
    """What is known of sites, in their own order: JAX sorts keys, ``layers.10`` before ``layers.2``."""
    return {site: by_site[site] for site in sites if site in by_site}


def sums_in_order(sums: Sums, sites: Sequence[Site]) -> Sums:
    """The same sums for each single matrix, in numeric layer order."""
    return replace(
        sums,
        hidden_errors={term: unstacked(x, sites) for term, x in sums.hidden_errors.items()},
        hidden_elements={term: unstacked(x, sites) for term, x in sums.hidden_elements.items()},
        minimality={term: unstacked(x, sites) for term, x in sums.minimality.items()},
        active=unstacked(sums.active, sites),
        ci=unstacked(sums.ci, sites),
        histogram=unstacked(sums.histogram, sites),
    )


def without_channels(sums: Sums) -> Sums:
    """What is kept of every single batch: the sums that means are made of, none of them per subcomponent."""
    active = {site: jnp.sum(jnp.asarray(x), axis=-1) for site, x in sums.active.items()}
    return replace(sums, minimality={}, active=active, ci={}, histogram={})


def batch_sums(
    what: Pass,
    problem: Problem,
    target: Target,
    decomposition: Decomposition,
    adversaries: dict[str, AdversaryState],
    batch: Array,
    updates: Int[Array, ""],
    index: Int[Array, ""],
    in_histogram: Array,
    seed: Seed,
) -> Sums:
    """Sums of one batch. Persistent sources are tiled over it and stay as they are.

    Args:
        what: what to accumulate.
        problem: the static part of the run.
        target: the frozen network.
        decomposition: parameters to evaluate.
        adversaries: persistent sources by term.
        batch: input of the target.
        updates: made so far, for annealed losses.
        index: of the batch in the evaluation stream.
        in_histogram: whether the batch enters the histograms.
        seed: of the run.
    """
    net, x = cast_compute(problem, (target, batch))
    clean, inputs, outputs, resume = recorded_forward(net, x, problem.sites)
    components = cast_compute(problem, decomposition.components)
    leading = leading_shape(problem, inputs)
    scene = Scene(net, components, x, clean, problem.sites, leading, problem.use_delta)
    scene = replace(scene, clean_outputs=outputs, resume=resume if problem.reuse_prefix else None)
    ci = importances(problem, decomposition.ci_fn, decomposition.components, inputs, index, seed)
    positions = math.prod(leading)

    recon: dict[str, Array] = {}
    riders: dict[str, Array] = {}
    for key, term in what.recon:
        stored = adversaries[term.name].sources if term.name in adversaries else None
        divergence, rider = recon_parts(term, scene, ci.lower, stream(seed, f"eval/{key}", index), stored)
        recon[key] = divergence * positions
        if rider is not None:
            riders[key] = rider * positions

    errors: dict[str, dict[str, Array]] = {}
    elements: dict[str, dict[str, Array]] = {}
    for key, term in what.hidden_acts:
        errors[key], elements[key] = _hidden(term, scene, ci.lower, stream(seed, f"eval/{key}", index))

    def weighted(losses: MaskedLosses) -> MaskedLosses:
        return jax.tree.map(lambda x: x.astype(jnp.float32) * positions, losses)

    language = {
        key: weighted(masked_losses(scene, ci.lower, stream(seed, f"eval/{key}", index), threshold))
        for key, threshold in what.language
    }
    attention = {
        key: {
            layer: x * positions
            for layer, x in attention_divergence(metric, scene, ci.lower, stream(seed, f"eval/{key}", index)).items()
        }
        for key, metric in what.attention
    }
    thresholds = jnp.asarray(what.thresholds)
    axes = {site.name: len(site.stack) for site in problem.sites}
    lower = {s.name: ci.lower[s.name].astype(jnp.float32).reshape(*s.stack, positions, s.C) for s in problem.sites}
    return Sums(
        positions=jnp.asarray(positions, jnp.float32),
        recon=recon,
        riders=riders,
        hidden_errors=errors,
        hidden_elements=elements,
        minimality={key: term.penalty.sums(ci.upper, updates / problem.steps, axes) for key, term in what.minimality},
        active={s: _active(z, thresholds) for s, z in lower.items()},
        ci={s: jnp.sum(z, axis=-2) for s, z in lower.items()},
        histogram={s: _histograms(z, in_histogram) for s, z in lower.items()} if what.histogram_batches else {},
        language=language,
        attention=attention,
        probes={key: _probe(key, term, restarts, scene, ci.lower, index, seed) for key, term, restarts in what.probes},
    )


def _probe(
    key: str,
    term: ReconTerm,
    restarts: int,
    scene: Scene,
    lower: dict[str, Array],
    index: Int[Array, ""],
    seed: Seed,
) -> dict[str, Array]:
    """The worst restart of a fresh adversary on a batch, and their mean, times its positions."""
    drawn = stream(seed, f"eval/{key}", index)
    reached = jax.lax.map(
        lambda i: recon_parts(term, scene, lower, jax.random.fold_in(drawn, i))[0], jnp.arange(restarts)
    )
    return {"worst": jnp.max(reached) * math.prod(scene.leading), "mean": jnp.mean(reached) * math.prod(scene.leading)}


def _hidden(
    term: ReconTerm, scene: Scene, lower: dict[str, Array], key: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Squared errors and element counts of each site over all forwards of a term."""
    errors = {site.name: jnp.zeros(site.stack) for site in scene.sites}
    elements = {site.name: jnp.zeros(site.stack) for site in scene.sites}
    for sources, routes in recon_forwards(term, scene, lower, key, None):
        masks = site_masks(term, scene, lower, sources, routes)
        _, masked = masked_site_outputs(scene.target, scene.components, scene.batch, masks, scene.resume)
        more, counts = hidden_act_errors(scene, masked, masks)
        for site in more:
            errors[site] = errors[site] + more[site]
            elements[site] = elements[site] + counts[site] / max(1, more[site].size)
    return errors, elements


def _active(ci: Float[Array, "*stack positions C"], thresholds: Float[Array, " n"]) -> Float[Array, "*stack n C"]:
    above = ci[..., None, :, :] > thresholds[:, None, None]
    return jnp.sum(above, axis=-2, dtype=jnp.float32)


def _histograms(ci: Float[Array, "*stack positions C"], counted: Array) -> Float[Array, "*stack bins"]:
    """Of each matrix; one count serves a whole stack, whose matrices have bins of their own."""
    *stack, _, _ = ci.shape
    n = math.prod(stack)
    bins = jnp.clip((ci * HISTOGRAM_BINS).astype(jnp.int32), 0, HISTOGRAM_BINS - 1).reshape(n, -1)
    bins = bins + HISTOGRAM_BINS * jnp.arange(n, dtype=jnp.int32)[:, None]

    def count(bins: Array) -> Array:
        return jnp.bincount(bins.reshape(-1), length=n * HISTOGRAM_BINS).astype(jnp.float32)

    found = jax.lax.cond(counted, count, lambda _: jnp.zeros(n * HISTOGRAM_BINS), bins)
    return found.reshape(*stack, HISTOGRAM_BINS)


def accumulate(
    what: Pass,
    problem: Problem,
    batches: Batches,
    target: Target,
    decomposition: Decomposition,
    adversaries: dict[str, AdversaryState],
    updates: Int[Array, ""],
    first: Int[Array, ""],
    i: Int[Array, ""],
    seed: Seed,
    given: Given = None,
) -> tuple[Sums, WeightSquares]:
    """Sums over batch ``first + i`` of the evaluation stream, and with batch 0 of a pass what is known of the weights.

    One batch a call: a pass can be left between two of them, and what it adds up doesn't depend on the machine's pace.
    """
    index = first + i
    batch = in_program(batches, given, index)(seed, index)
    counted = i < what.histogram_batches
    sums = batch_sums(what, problem, target, decomposition, adversaries, batch, updates, index, counted, seed)

    def squares() -> WeightSquares:
        return weight_squares(problem.sites, frozen_weights(target, batch, problem.sites), decomposition.components)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(squares))
    return sums, jax.lax.cond(i == 0, squares, lambda: nothing)


def added(sums: Sums, more: Sums) -> Sums:
    """The sums of both, on the host."""
    return jax.tree.map(lambda a, b: np.asarray(a + b), sums, more)
