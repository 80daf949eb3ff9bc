"""What a subset of subcomponents does by itself, with anything on the rest, and what is left without it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vpd.analysis.pruning.question import Importances, Measure, Members, Question
from vpd.decomposition import Mask, SiteMask, interpolate
from vpd.objective.adversary import Sources, clip01
from vpd.objective.recon import ReconTerm, Stochastic, recon_forwards
from vpd.targets import masked_site_outputs

# The attack on what was discarded: ascents of sign, from a random start in every row.
ASCENTS, STEP = 40, 0.1

REST = ReconTerm("rest", 1.0, Stochastic())


@dataclass(frozen=True)
class Kept:
    """What a subset does, by measure (``ce``, ``kl``): means over rows, in nats.

    Attributes:
        alone: all else removed, no weight delta.
        stochastic: random masks on the rest and the delta.
        adversarial: an adversary has the masks of the discarded alive subcomponents; the mean of its rows.
        worst: its worst row.
        without: the target less the subset, delta included.
    """

    alone: Mapping[str, float]
    stochastic: Mapping[str, float]
    adversarial: Mapping[str, float]
    worst: Mapping[str, float]
    without: Mapping[str, float]


def adversarial_sources(
    question: Question, alive: Members, drawn: Sources, stored: Sources, rows: Bool[Array, " rows"]
) -> Sources:
    """An adversary's values for the alive subcomponents in its rows, the drawn ones for all else and the delta."""
    chosen: Sources = {}
    for site in question.scene.sites:
        u, own = drawn[site.name], alive[site.name]
        own = jnp.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, u.shape[-1] - own.shape[-1])])
        there = rows.reshape(-1, *(1 for _ in question.scene.leading))
        chosen[site.name] = jnp.where(own & there, stored[site.name], u)
    return chosen


def drawn_sources(question: Question, key: Key[Array, ""]) -> Sources:
    """Sources of a stochastic forward."""
    return recon_forwards(REST, question.scene, question.ci, key, None)[0][0]


def by_row(question: Question, masks: Mapping[str, Mask]) -> dict[Measure, Float[Array, " rows"]]:
    """What is asked and what else could be, by measure, of every row of one masked forward."""
    scene = question.scene
    out, _ = masked_site_outputs(scene.target, scene.components, scene.batch, masks, scene.resume)
    found: dict[Measure, Float[Array, " rows"]] = {}
    for measure in question.asked.measures:
        values = question.about(measure).asked.divergence(scene.clean, out)
        found[measure] = values.reshape(values.shape[0], -1).mean(axis=-1)
    return found


def attack(question: Question, g: Importances, alive: Members, key: Key[Array, ""]) -> Sources:
    """The sources of a fresh adversary on the discarded alive subcomponents, in every row from another start."""
    key_drawn, key_start = jax.random.split(key)
    drawn, start = (drawn_sources(question, k) for k in (key_drawn, key_start))
    everywhere = jnp.ones(question.scene.leading[0], bool)

    def effective(stored: Sources) -> Sources:
        return adversarial_sources(question, alive, drawn, stored, everywhere)

    def climbed(stored: Sources) -> Float[Array, ""]:
        return by_row(question, with_sources(g, effective(stored)))[question.asked.measure].sum()

    def ascent(_: object, now: Sources) -> Sources:
        slopes = jax.grad(climbed)(now)
        return {s: clip01(x + STEP * jnp.sign(slopes[s])) for s, x in now.items()}

    return effective(jax.lax.fori_loop(0, ASCENTS, ascent, start))


def measured(
    question: Question, g: Importances, alive: Members, key: Key[Array, ""]
) -> dict[Measure, Float[Array, "situations rows"]]:
    """Every situation of :class:`Kept` but the worst, by row; the attack climbs the measure that is asked.

    Args:
        question: about the prompt.
        g: of the subset, ``[*stack, 1, *positions, C]``: 1 keeps, 0 leaves to the masks, between is as an importance.
        alive: what the adversary may have, likewise.
        key: of the draws.
    """
    g, alive = question.spread(g), question.spread(alive)
    key_drawn, key_attack = jax.random.split(key)
    ones = {s: jnp.ones(x.shape[:-1]) for s, x in g.items()}
    situations = (
        {s: SiteMask(x, jnp.zeros_like(ones[s])) for s, x in g.items()},
        with_sources(g, drawn_sources(question, key_drawn)),
        with_sources(g, attack(question, g, alive, key_attack)),
        {s: SiteMask(1 - x, ones[s]) for s, x in g.items()},
    )
    # One after the other through one program: it is compiling that takes long.
    return jax.lax.map(partial(by_row, question), jax.tree.map(lambda *each: jnp.stack(each), *situations))


def with_sources(g: Importances, sources: Sources) -> dict[str, SiteMask]:
    """Masks ``g + (1 − g) · source``, their deltas as drawn, or 0 where the run has none."""
    masks = {s: interpolate(x, sources[s]) for s, x in g.items()}
    return {
        s: m if m.delta is not None else SiteMask(m.component, jnp.zeros(g[s].shape[:-1])) for s, m in masks.items()
    }


def kept_from(rows: Mapping[Measure, Float[Array, "situations rows"]], climbed: Measure) -> Kept:
    """Means over rows, and the row in which the attack did worst.

    Args:
        rows: of :func:`measured`.
        climbed: the measure of the attack.
    """
    means = [{measure: float(x[i].mean()) for measure, x in rows.items()} for i in range(4)]
    worst = int(jnp.argmax(rows[climbed][2]))
    hardest = {measure: float(x[2, worst]) for measure, x in rows.items()}
    return Kept(means[0], means[1], means[2], hardest, means[3])
