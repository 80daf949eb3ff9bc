"""Which subcomponents to ablate: candidates by importance, ranked by what removing each does on target and off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vpd.analysis.editing.effect import Estimate, Sums, Totals, sums_of
from vpd.analysis.editing.sets import Examples
from vpd.analysis.names import Subcomponent
from vpd.analysis.run import Run, in_type_of
from vpd.decomposition import SiteMask
from vpd.progress import bar_unless, training_meter
from vpd.targets import Target, masked_site_outputs, recorded_forward
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
    """Candidates by how much more important they are on target than off it, ranked by what each alone does.

    The rank is the divergence on target less that off target, the largest first. In that order they are ablated
    together as well, one more at a time, so that a reader sees where to stop.

    Args:
        run: opened.
        examples: batches with the positions of ``on`` and ``off``.
        most: how many candidates.
        quiet: no progress bar.

    Raises:
        RunError: a set without any position.
    """
    ci = {name: _mean_importances(run, examples, name) for name in ("on", "off")}
    axis = run.axis
    contrast = ci["on"] - ci["off"]
    chosen = [axis.at(int(i)) for i in np.argsort(-contrast, kind="stable")[:most] if contrast[i] > 0]
    program = jax.jit(_ablated)
    with training_meter(2 * len(chosen), 0, bar_unless(quiet), "ablating candidates", "step") as meter:

        def measure(gone: Sequence[Subcomponent], done: int) -> Mapping[str, Mapping[str, Estimate]]:
            found = _effects(run, program, examples, gone)
            meter(done, {})
            return found

        alone = {one: measure([one], i + 1) for i, one in enumerate(chosen)}
        order = sorted(chosen, key=lambda one: -_gap(alone[one]))
        together = [measure(order[: i + 1], len(chosen) + i + 1) for i in range(len(order))]
    place = [axis.place(one) for one in order]
    return [
        Candidate(one, float(ci["on"][at]), float(ci["off"][at]), alone[one], both)
        for one, at, both in zip(order, place, together, strict=True)
    ]


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
    kept = {site: np.ones(C, np.float32) for site, C in run.axis.sizes.items()}
    for one in gone:
        kept[one.site][one.index] = 0.0
    totals = {"on": Totals(), "off": Totals()}
    for one in examples:
        where = {name: jnp.asarray(own) for name, own in one.where.items()}
        masks = {site: jnp.asarray(mask) for site, mask in kept.items()}
        found: dict[str, Sums] = program(run.experiment.target, run.decomposition, masks, jnp.asarray(one.batch), where)
        for name, sums in jax.device_get(found).items():
            totals[name].add(sums)
    return {name: own.effect(run.config.pd.seed, name).measures for name, own in totals.items()}


def _ablated(
    target: Target, decomposition: Decomposition, kept: Kept, batch: Array, where: dict[str, Array]
) -> dict[str, Sums]:
    """The effect of masks that are the same at every position, all weight deltas in."""
    before = recorded_forward(target, batch).output
    leading = next(iter(where.values())).shape
    masks = {
        site: SiteMask(jnp.broadcast_to(mask, (*leading, *mask.shape)), jnp.ones(leading))
        for site, mask in kept.items()
    }
    components, masks = in_type_of(target, (decomposition.components, masks))
    after, _ = masked_site_outputs(target, components, batch, masks)
    return {name: sums_of(target, before, after, batch, own) for name, own in where.items()}
