"""Which subcomponents to ablate: candidates by importance, ranked by what removing each does on target and off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vpd.analysis.editing.effect import Estimate, Sums, Totals, sums_of
from vpd.analysis.editing.sets import Examples
from vpd.analysis.names import Subcomponent
from vpd.analysis.run import Run, in_type_of
from vpd.decomposition import Activation, SiteMask
from vpd.progress import bar_unless, training_meter
from vpd.targets import Induction, LanguageModel, Target, masked_site_outputs, recorded_forward
from vpd.targets.divergence import cross_entropy
from vpd.training.state import Decomposition

Kept = dict[str, Float[Array, " _C"]]


@dataclass(frozen=True)
class Candidate:
    """A subcomponent that might be ablated.

    Attributes:
        subcomponent: which.
        on_ci: its mean importance on target.
        off_ci: off target.
        alone: what ablating it alone does, ``{set: {measure: ·}}``.
        together: what ablating it and all before it does.
    """

    subcomponent: Subcomponent
    on_ci: float
    off_ci: float
    alone: Mapping[str, Mapping[str, Estimate]]
    together: Mapping[str, Mapping[str, Estimate]]


def rank_ablations(run: Run, examples: Sequence[Examples], most: int, quiet: bool = True) -> list[Candidate]:
    """Candidates for ablation, ranked by what each alone does on target less what it does off it.

    Half of them are those whose importance on target is highest above that off it, half those (more important on
    target too) that to first order raise the cross-entropy on target most: ``−∂CE/∂m_c`` at masks of 1, deltas in. In
    the order of their rank they are ablated together as well, one more at a time, so that a reader sees where to stop.
    Where both sets are of the same data, the sequences with a position on target are looked at alone.

    Args:
        run: opened.
        examples: batches with the positions of ``on`` and ``off``.
        most: how many candidates.
        quiet: no progress bar.

    Raises:
        RunError: a set without any position.
    """
    examples = with_target(examples)
    ci = {name: _mean_importances(run, examples, name) for name in ("on", "off")}
    axis = run.axis
    chosen = [axis.at(place) for place in _chosen(ci["on"] - ci["off"], _first_order(run, examples), most)]
    program = jax.jit(_ablated)
    with training_meter(2 * len(chosen), 0, bar_unless(quiet), "ablating candidates", "step") as meter:

        def measure(gone: Sequence[Subcomponent], done: int) -> Mapping[str, Mapping[str, Estimate]]:
            found = _effects(run, program, examples, gone)
            meter(done, {})
            return found

        alone = {one: measure([one], i + 1) for i, one in enumerate(chosen)}
        order = sorted(chosen, key=lambda one: -_gap(alone[one]))
        together = [measure(order[: i + 1], len(chosen) + i + 1) for i in range(len(order))]
    return [
        Candidate(one, float(ci["on"][axis.place(one)]), float(ci["off"][axis.place(one)]), alone[one], both)
        for one, both in zip(order, together, strict=True)
    ]


def with_target(examples: Sequence[Examples]) -> list[Examples]:
    """The sequences that have a position on target, in batches of the old size; those of one set alone stay."""
    single = [one for one in examples if len(one.where) < 2]
    both = [one for one in examples if len(one.where) == 2]
    has = [one.where["on"].reshape(len(one.batch), -1).any(axis=1) for one in both]
    if not any(own.any() for own in has):
        return list(examples)
    batch = np.concatenate([one.batch[own] for one, own in zip(both, has, strict=True)])
    where = {n: np.concatenate([one.where[n][own] for one, own in zip(both, has, strict=True)]) for n in both[0].where}
    size = len(both[0].batch)
    missing = -len(batch) % size
    batch = np.concatenate([batch, batch[:1].repeat(missing, axis=0)])
    empty = {n: np.zeros_like(own[:1]).repeat(missing, axis=0) for n, own in where.items()}
    where = {n: np.concatenate([own, empty[n]]) for n, own in where.items()}
    rows = [slice(i, i + size) for i in range(0, len(batch), size)]
    return [*single, *(Examples(batch[own], {n: w[own] for n, w in where.items()}) for own in rows)]


def _chosen(contrast: Float[np.ndarray, " n"], raises: Float[np.ndarray, " n"] | None, most: int) -> list[int]:
    """Taken in turn from the front of both orders."""
    orders = [np.argsort(-contrast, kind="stable")]
    if raises is not None:
        orders.append(np.argsort(-np.where(contrast > 0, raises, -np.inf), kind="stable"))
    turns = [int(place) for pair in zip(*orders, strict=True) for place in pair if contrast[place] > 0]
    return list(dict.fromkeys(turns))[:most]


def _first_order(run: Run, examples: Sequence[Examples]) -> Float[np.ndarray, " n"] | None:
    """By how much ablating each subcomponent raises the summed cross-entropy on target; None without tokens."""
    if not isinstance(run.experiment.target, Induction | LanguageModel):
        return None
    slope = jax.jit(jax.grad(_summed_loss))
    kept = _kept(run, [])
    total = np.zeros(len(run.axis))
    for one in examples:
        if "on" in one.where:
            at, batch = jnp.asarray(one.where["on"]), jnp.asarray(one.batch)
            found = jax.device_get(slope(kept, run.experiment.target, run.decomposition, batch, at))
            total -= run.axis.joined({site: np.asarray(found[site], np.float64) for site in run.axis.sizes})
    return total


def _summed_loss(
    kept: Kept, target: Target, decomposition: Decomposition, batch: Int[Array, "B T"], where: Bool[Array, "B T"]
) -> Float[Array, ""]:
    after = _masked(target, decomposition, kept, batch, where.shape)
    return jnp.sum(cross_entropy(after, jnp.roll(batch, -1, axis=-1)), where=where)


def _gap(found: Mapping[str, Mapping[str, Estimate]]) -> float:
    """Divergence on target less that off it; the first measure is the divergence."""
    first = [next(iter(found[name].values())).value for name in ("on", "off")]
    return first[0] - first[1]


def _mean_importances(run: Run, examples: Sequence[Examples], name: str) -> Float[np.ndarray, " n"]:
    """Of every subcomponent over the positions of a set, along the flat axis."""
    total, count = np.zeros(len(run.axis)), 0
    for one in examples:
        if name not in one.where:
            continue
        where: Bool[np.ndarray, "..."] = one.where[name]
        ci = run.causal_importances(jnp.asarray(one.batch))
        total += run.axis.joined({site: np.asarray(x, np.float64)[where].sum(axis=0) for site, x in ci.items()})
        count += int(where.sum())
    return total / max(count, 1)


def _effects(
    run: Run, program: "jax.stages.Wrapped", examples: Sequence[Examples], gone: Sequence[Subcomponent]
) -> Mapping[str, Mapping[str, Estimate]]:
    kept = _kept(run, gone)
    totals = {"on": Totals(), "off": Totals()}
    for one in examples:
        where = {name: jnp.asarray(own) for name, own in one.where.items()}
        found: dict[str, Sums] = program(run.experiment.target, run.decomposition, kept, jnp.asarray(one.batch), where)
        for name, sums in jax.device_get(found).items():
            totals[name].add(sums)
    return {name: own.effect(run.config.pd.seed, name).measures for name, own in totals.items()}


def _kept(run: Run, gone: Sequence[Subcomponent]) -> Kept:
    """Masks of 1 but for what is gone."""
    kept = {site: np.ones(C, np.float32) for site, C in run.axis.sizes.items()}
    for one in gone:
        kept[one.site][one.index] = 0.0
    return {site: jnp.asarray(mask) for site, mask in kept.items()}


def _ablated(
    target: Target, decomposition: Decomposition, kept: Kept, batch: Array, where: dict[str, Array]
) -> dict[str, Sums]:
    """The effect of masks that are the same at every position, all weight deltas in."""
    before = recorded_forward(target, batch).output
    after = _masked(target, decomposition, kept, batch, next(iter(where.values())).shape)
    return {name: sums_of(target, before, after, batch, own) for name, own in where.items()}


def _masked(
    target: Target, decomposition: Decomposition, kept: Kept, batch: Array, leading: tuple[int, ...]
) -> Activation:
    one = jnp.ones(leading)
    masks = {site: SiteMask(jnp.broadcast_to(mask, (*leading, *mask.shape)), one) for site, mask in kept.items()}
    components, masks = in_type_of(target, (decomposition.components, masks))
    return masked_site_outputs(target, components, batch, masks)[0]
