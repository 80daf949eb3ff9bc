"""Vital signs of a decomposition: what a diagnosis goes by, whatever metrics the run file names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vpd.data.feed import Batches, Given, in_program
from vpd.decomposition import Activation, ComponentSet, Site, dense, members_in_order, unstacked
from vpd.decomposition.site import site_inner
from vpd.objective import AdversaryState, Persistent, ReconTerm, Scene, Term, init_adversary
from vpd.objective.adversary import drawn_sources, effective_sources
from vpd.objective.recon import Constant, FreshPGD, Stochastic, recon_parts
from vpd.objective.total import persistent_terms
from vpd.randomness import Seed, stream
from vpd.targets import Target, recorded_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, cast_compute, importances, leading_shape

# Lower CI above which a subcomponent is important at a position.
IMPORTANT = 0.1
# A subcomponent is alive where its mean lower CI is above it.
ALIVE_MEAN_CI = 1e-6
# The lesser sign of a two-signed subcomponent carries at least this part of its activation.
LESSER_SIGN = 0.2

BySite = dict[str, Float[Array, "..."]]


@dataclass(frozen=True)
class SiteHealth:
    """One decomposed matrix.

    Attributes:
        site: its path.
        C: its subcomponents.
        l0: important ones a position.
        alive: those whose mean importance is above 1e-6.
        two_signed: important ones that are activated with both signs.
        delta: ``‖W − V U‖ / ‖W‖``.
        mechanisms: how many it has at least, where something is known of them.
        dense: whether all of these are in use together.
    """

    site: str
    C: int
    l0: float
    alive: int
    two_signed: int
    delta: float
    mechanisms: int | None = None
    dense: bool = False


@dataclass(frozen=True)
class AdversaryHealth:
    """What an adversary that is trained against reaches.

    Attributes:
        loss: with its own sources.
        random: with random sources of the same shape.
        moved: root of the mean squared way that persistent sources are from where they began; None of fresh ones.
    """

    loss: float
    random: float
    moved: float | None = None


@dataclass(frozen=True)
class Health:
    """Vital signs at one step.

    Attributes:
        recon: divergence from the clean output with the importances as masks (``ci``), ``unmasked``, with all masks 0
            (``zero``), and ``stochastic``.
        sites: in numeric layer order.
        adversaries: by the key of their term; those that have not begun are left out.
    """

    recon: dict[str, float]
    sites: list[SiteHealth]
    adversaries: dict[str, AdversaryHealth] = field(default_factory=dict)

    def as_record(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


class HealthSums(eqx.Module):
    """Sums over the positions of some batches: losses, important and summed importances, activation by sign."""

    positions: Float[Array, ""]
    losses: dict[str, Float[Array, ""]]
    active: BySite
    ci: BySite
    positive: BySite
    negative: BySite


def measure_health(
    problem: Problem,
    batches: Batches,
    probe: Float[Array, "n_features n_features"] | None,
    target: Target,
    decomposition: Decomposition,
    adversaries: dict[str, AdversaryState],
    first: Int[Array, ""],
    n: Int[Array, ""],
    seed: Seed,
    given: Given = None,
) -> tuple[HealthSums, dict[str, Float[Array, ""]]]:
    """Sums over batches ``first … first + n − 1``, and how far the sources of each persistent term have moved.

    Args:
        problem: the static part of the run.
        batches: of (seed, index).
        probe: single features, which signs are counted on instead of the batches, where the target has them.
        target: the frozen network.
        decomposition: parameters.
        adversaries: persistent sources by term.
        first: batch.
        n: how many.
        seed: of the run.
        given: batches from the host.
    """
    draw = in_program(batches, given, first)

    def one(i: Int[Array, ""]) -> HealthSums:
        return _of_batch(problem, target, decomposition, adversaries, draw(seed, first + i), first + i, seed)

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jnp.zeros_like(n)))
    sums = jax.lax.fori_loop(0, n, lambda i, sums: jax.tree.map(jnp.add, sums, one(i)), zero)
    if probe is not None:
        signs = _of_batch(problem, target, decomposition, {}, probe, first, seed)
        sums = replace(sums, positive=signs.positive, negative=signs.negative)
    own = {name: found for name, found in persistent_terms(problem.terms).items() if name in adversaries}
    return sums, {name: _moved(problem, adversaries[name], name, spec, seed) for name, (_, spec) in own.items()}


def _of_batch(
    problem: Problem,
    target: Target,
    decomposition: Decomposition,
    adversaries: Mapping[str, AdversaryState],
    batch: Array,
    index: Int[Array, ""],
    seed: Seed,
) -> HealthSums:
    net, x = cast_compute(problem, (target, batch))
    clean, inputs, outputs, resume = recorded_forward(net, x, problem.sites)
    leading = leading_shape(problem, inputs)
    components = cast_compute(problem, decomposition.components)
    scene = Scene(net, components, x, clean, problem.sites, leading, problem.use_delta, clean_outputs=outputs)
    scene = replace(scene, resume=resume if problem.reuse_prefix else None)
    ci = importances(problem, decomposition.ci_fn, decomposition.components, inputs, index, seed).lower
    N = math.prod(leading)
    nothing = {s: jnp.zeros_like(x) for s, x in ci.items()}

    def loss(name: str, term: ReconTerm, lower: BySite, stored: BySite | None = None) -> Array:
        key = stream(seed, f"health/{name}", index)
        return recon_parts(term, scene, lower, key, stored)[0] * N

    losses = {
        "ci": loss("ci", ReconTerm("ci", 1.0, Constant(0)), ci),
        "unmasked": loss("unmasked", ReconTerm("unmasked", 1.0, Constant(1)), ci),
        "zero": loss("zero", ReconTerm("zero", 1.0, Constant(0)), nothing),
        "stochastic": loss("stochastic", ReconTerm("stochastic", 1.0, Stochastic(problem.sampling)), ci),
    }
    for term, harmless, stored, start in _adversarial(problem, adversaries, stream(seed, "health/start", index)):
        losses[f"adversary/{term.name}"] = loss(term.name, term, ci, stored)
        losses[f"random/{term.name}"] = loss(term.name, harmless, ci, start)
    signs = {s.name: _signs(s, inputs[s.name], components, ci[s.name]) for s in problem.sites}
    wide = {s.name: ci[s.name].astype(jnp.float32).reshape(*s.stack, N, s.C) for s in problem.sites}
    return HealthSums(
        positions=jnp.asarray(N, jnp.float32),
        losses=losses,
        active={s: jnp.sum(z > IMPORTANT, axis=(-2, -1), dtype=jnp.float32) for s, z in wide.items()},
        ci={s: jnp.sum(z, axis=-2) for s, z in wide.items()},
        positive={s: positive for s, (positive, _) in signs.items()},
        negative={s: negative for s, (_, negative) in signs.items()},
    )


def _adversarial(
    problem: Problem, adversaries: Mapping[str, AdversaryState], key: Array
) -> list[tuple[ReconTerm, ReconTerm, BySite | None, BySite | None]]:
    """Each term that is trained against an adversary: it, its harmless twin, and the stored sources of both."""
    found: list[tuple[ReconTerm, ReconTerm, BySite | None, BySite | None]] = []
    for term in problem.terms:
        if not isinstance(term, ReconTerm) or term.measure != "output":
            continue
        match term.source:
            case FreshPGD() as attack:
                idle = replace(attack, init="random", n_steps=0)
                found.append((term, replace(term, source=idle), None, None))
            case Persistent() as spec if term.name in adversaries:
                # Of a mixture the adversarial part alone.
                alone = Persistent(*(getattr(spec, own.name) for own in fields(Persistent)))
                own = replace(term, source=alone)
                stored = adversaries[term.name].sources
                draw = jax.random.normal if spec.sigmoid else jax.random.uniform
                start = drawn_sources(problem.sites, {s: x.shape for s, x in stored.items()}, key, draw)
                found.append((own, own, stored, start))
            case _:
                pass
    return found


def _signs(
    site: Site, x: Activation, components: ComponentSet, ci: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Activation of each subcomponent where it is important, by sign, weighted by importance."""
    inner = partial(site_inner, kind=site.kind)
    activations = (inner if site.span is None else jax.vmap(inner))(dense(x), components[site.name])
    weighted = jnp.where(ci > IMPORTANT, ci, 0.0).astype(jnp.float32) * activations.astype(jnp.float32)
    weighted = weighted.reshape(*site.stack, -1, site.C)
    return jnp.sum(jnp.maximum(weighted, 0), axis=-2), jnp.sum(jnp.maximum(-weighted, 0), axis=-2)


def _moved(problem: Problem, adversary: AdversaryState, name: str, spec: Persistent, seed: Seed) -> Float[Array, ""]:
    """How far sources are from where they began, which is a function of the seed."""
    shapes = {s: x.shape for s, x in adversary.sources.items()}
    start = init_adversary(problem.sites, shapes, stream(seed, f"init/{name}"), spec.optimizer, spec.sigmoid)
    before, now = (effective_sources(x, spec.sigmoid) for x in (start.sources, adversary.sources))
    squares = sum((jnp.sum(jnp.square(now[s] - before[s])) for s in now), jnp.zeros(()))
    return jnp.sqrt(squares / float(sum(x.size for x in now.values())))


def health_of(
    problem: Problem,
    sums: HealthSums,
    moved: Mapping[str, Float[np.ndarray, ""]],
    deltas: Mapping[str, float],
    known: Mapping[str, tuple[int, bool]],
    step: int,
) -> Health:
    """Vital signs from sums that are on the host.

    Args:
        problem: the static part of the run.
        sums: of a pass.
        moved: how far persistent sources are from where they began, by term.
        deltas: ``‖W − V U‖ / ‖W‖`` by matrix.
        known: of matrices whose mechanisms are known: how many at least, and whether all are in use together.
        step: updates made; a term that has not begun is left out.
    """
    N, sites = float(sums.positions), problem.sites
    active, ci, positive, negative = (unstacked(x, sites) for x in (sums.active, sums.ci, sums.positive, sums.negative))
    found = [
        SiteHealth(
            name,
            site.C,
            float(active[name]) / N,
            int(np.sum(np.asarray(ci[name]) / N > ALIVE_MEAN_CI)),
            two_signed(np.asarray(positive[name]), np.asarray(negative[name])),
            deltas[name],
            *known.get(name, (None, False)),
        )
        for site, _, name in members_in_order(sites)
    ]
    losses = {name: float(x) / N for name, x in sums.losses.items()}
    recon = {name: losses[name] for name in ("ci", "unmasked", "zero", "stochastic")}
    return Health(recon, found, _adversaries(problem.terms, losses, moved, step))


def _adversaries(
    terms: Sequence[Term], losses: Mapping[str, float], moved: Mapping[str, Float[np.ndarray, ""]], step: int
) -> dict[str, AdversaryHealth]:
    found: dict[str, AdversaryHealth] = {}
    for term in terms:
        begun = not (
            isinstance(term, ReconTerm) and isinstance(term.source, Persistent) and step <= term.source.first_step
        )
        if begun and f"adversary/{term.name}" in losses:
            way = float(moved[term.name]) if term.name in moved else None
            found[term.name] = AdversaryHealth(losses[f"adversary/{term.name}"], losses[f"random/{term.name}"], way)
    return found


def two_signed(positive: Float[np.ndarray, " C"], negative: Float[np.ndarray, " C"]) -> int:
    """How many subcomponents are activated with both signs where they are important, neither of them by a little."""
    whole = positive + negative
    return int(np.sum((whole > 0) & (np.minimum(positive, negative) > LESSER_SIGN * whole)))
