"""The recon grid: live sites × routing × mask source, one mechanism for every recon loss (method.md §4)."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from vpd.decomposition import (
    Activation,
    AllRouting,
    ComponentSet,
    Interpolated,
    Mask,
    Routing,
    Site,
    SiteMask,
    dense,
    draw_routing,
    for_each,
    members_in_order,
    site_numbers,
    spread,
)
from vpd.decomposition.masks import Scope
from vpd.objective.adversary import (
    AdamAscent,
    SignAscent,
    Sources,
    clip01,
    drawn_sources,
    effective_sources,
    source_shapes,
)
from vpd.objective.schedule import Schedule
from vpd.targets import Target, masked_site_outputs
from vpd.targets.layers import Resume

Importances = Mapping[str, Float[Array, "..."]]
Routes = Mapping[str, Array | None]
Parts = tuple[Float[Array, ""], Float[Array, ""] | None]


@dataclass(frozen=True)
class Constant:
    """The same source everywhere and no delta: 0 makes the mask the importance itself, 1 leaves all unmasked."""

    value: Literal[0, 1]


@dataclass(frozen=True)
class Stochastic:
    """Drawn afresh for each forward: U[0, 1], or Bernoulli(½); the delta source is U[0, 1] either way."""

    sampling: Literal["continuous", "binomial"] = "continuous"


@dataclass(frozen=True)
class FreshPGD:
    """Sign ascent from a fresh start, ``n_steps`` of ``+ step_size · sign(grad)``, clipped to [0, 1] after each."""

    init: Literal["random", "ones", "zeroes"]
    step_size: float
    n_steps: int
    scope: Scope
    n_sources: int | None = None


@dataclass(frozen=True)
class Persistent:
    """Sources that live in the training state; active from step ``first_step`` on."""

    optimizer: AdamAscent | SignAscent
    lr: Schedule
    scope: Scope
    n_sources: int | None = None
    n_warmup_steps: int = 0
    first_step: int = 0
    sigmoid: bool = False


@dataclass(frozen=True)
class Mixture(Persistent):
    """Persistent sources for the batch elements that a draw makes adversarial, fresh stochastic ones for the others.

    Bernoulli(``adv_fraction``) per element and forward, for all its positions and sites and the delta together. Warm-up
    ascents see every element adversarial. The last ascent has the gradient of the term itself: a mean over all
    elements, of which the adversarial ones alone reach the sources; it is not divided by ``adv_fraction``, which both
    ascent rules would undo. A source of stochastic elements alone has a gradient of 0 there: Adam moves it by its
    momentum, sign not at all.
    """

    adv_fraction: float = 1.0
    sampling: Literal["continuous", "binomial"] = "continuous"


EVERYWHERE = AllRouting()

Source = Constant | Stochastic | FreshPGD | Persistent | Mixture
Live = Literal["all", "each"] | int
Measure = Literal["output", "hidden_acts"]


@dataclass(frozen=True)
class Rider:
    """A second loss on a term's own forwards: the squared error of the outputs of the live sites its globs name."""

    coeff: float
    sites: tuple[str, ...]

    def among(self, sites: Iterable[str]) -> list[str]:
        """The sites it compares; ``h.1.*`` does not match ``h.10.x``."""
        return [site for site in sites if any(fnmatchcase(site, glob) for glob in self.sites)]


@dataclass(frozen=True)
class ReconTerm:
    """One row of the grid.

    Attributes:
        name: the key under which it is logged.
        coeff: its coefficient in the total.
        source: where masks come from.
        routing: which positions use the masked components.
        live: ``all`` sites at once, ``each`` one alone, or consecutive groups of that many.
        n_samples: forwards per group of live sites.
        measure: compare the target's ``output``, or every site's output (``hidden_acts``).
        rider: hidden activations compared in the same forwards; the term is its divergence and the weighted rider.
    """

    name: str
    coeff: float
    source: Source
    routing: Routing = EVERYWHERE
    live: Live = "all"
    n_samples: int = 1
    measure: Measure = "output"
    rider: Rider | None = None


class Scene(eqx.Module):
    """What every masked forward of a step shares.

    Attributes:
        target: the frozen network.
        components: V and U, in the compute dtype.
        batch: input of the target.
        clean: the clean output.
        sites: decomposed sites in numeric layer order.
        leading: ``(batch,)`` or ``(batch, sequence)``.
        use_delta: whether the delta channel is on.
        remat: recompute masked forwards in the backward pass.
        remat_layers: recompute each layer there.
        clean_outputs: of the sites, bias included, ``{site: [*leading, d_out]}``; for hidden activations alone.
        resume: where masked forwards begin; None begins them with the batch.
    """

    target: Target
    components: ComponentSet
    batch: Shaped[Array, "..."]
    clean: Activation
    sites: tuple[Site, ...] = eqx.field(static=True)
    leading: tuple[int, ...] = eqx.field(static=True)
    use_delta: bool = eqx.field(static=True)
    remat: bool = eqx.field(static=True, default=False)
    clean_outputs: Mapping[str, Activation] = eqx.field(default_factory=dict)
    resume: Resume | None = None
    remat_layers: bool = eqx.field(static=True, default=False)

    def held(self) -> "Scene":
        """The same scene with V and U constant, for ascents that move sources alone."""
        return replace(self, components=jax.lax.stop_gradient(self.components))


def recon_loss(
    term: ReconTerm, scene: Scene, ci: Importances, key: Key[Array, ""], stored: Sources | None = None
) -> Float[Array, ""]:
    """The term: its divergence, and its weighted rider where it has one; arguments as for :func:`recon_parts`."""
    return with_rider(term, *recon_parts(term, scene, ci, key, stored))


def recon_parts(
    term: ReconTerm, scene: Scene, ci: Importances, key: Key[Array, ""], stored: Sources | None = None
) -> Parts:
    """Means over the term's forwards of the per-position mean divergence from the clean output, and of the rider.

    Args:
        term: row of the grid.
        scene: target, components, batch and clean output.
        ci: lower causal importances, ``{site: [*leading, C]}``.
        key: random key of this term at this step.
        stored: sources of a persistent term, as stored.

    Returns:
        The divergence, and the unweighted hidden-activation error; None without a rider.
    """
    forwards = recon_forwards(term, scene, ci, key, stored)
    parts = [forward_parts(term, scene, ci, sources, routes) for sources, routes in forwards]
    n = len(parts)
    divergence = sum((d for d, _ in parts[1:]), parts[0][0]) / n
    if term.rider is None:
        return divergence, None
    return divergence, sum((hidden for _, hidden in parts if hidden is not None), jnp.zeros(())) / n


def with_rider(term: ReconTerm, divergence: Float[Array, ""], hidden: Float[Array, ""] | None) -> Float[Array, ""]:
    """What is trained and what adversaries climb: ``divergence + rider.coeff · hidden``."""
    if term.rider is None or hidden is None:
        return divergence
    return divergence + term.rider.coeff * hidden


def persistent_loss(term: ReconTerm, scene: Scene, ci: Importances, stored: Sources) -> Float[Array, ""]:
    """What a warm-up ascent climbs: the persistent term at all sites and positions, V, U and CI held."""
    assert isinstance(term.source, Persistent)
    sources = effective_sources(stored, term.source.sigmoid)
    held = {s: jax.lax.stop_gradient(x) for s, x in ci.items()}
    return forward_divergence(term, scene.held(), held, sources, dict.fromkeys(sources))


def live_groups(term: ReconTerm, sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """The groups of sites that are live together, one or more forwards each; of a stack its single matrices."""
    if term.live == "all":
        return [tuple(sites)]
    size = 1 if term.live == "each" else term.live
    single = [replace(site, name=name, span=None) for site, _, name in members_in_order(sites)]
    return [tuple(single[i : i + size]) for i in range(0, len(single), size)]


def recon_forwards(
    term: ReconTerm, scene: Scene, ci: Importances, key: Key[Array, ""], stored: Sources | None
) -> list[tuple[Sources, Routes]]:
    """Sources and routing of every forward of a term; a zero stands for a constant source, which the term holds."""
    forwards: list[tuple[Sources, Routes]] = []
    for g, group in enumerate(live_groups(term, scene.sites)):
        for sample in range(term.n_samples):
            key_source, key_routes = jax.random.split(jax.random.fold_in(key, g * term.n_samples + sample))
            routes = draw_routing(term.routing, key_routes, group, scene.leading)
            match term.source:
                case Constant():
                    sources: Sources = {s.name: jnp.zeros(()) for s in group}
                case Stochastic(sampling=sampling):
                    sources = _draw(sampling, group, scene, key_source)
                case FreshPGD() as attack:
                    sources = fresh_pgd(attack, term, scene, ci, group, routes, key_source)
                case Mixture() as mixture:
                    assert stored is not None, f"{term.name} needs its stored sources"
                    sources = _mixed(mixture, group, scene, stored, key_source)
                case Persistent(sigmoid=sigmoid):
                    assert stored is not None, f"{term.name} needs its stored sources"
                    sources = effective_sources(stored, sigmoid)
            forwards.append((sources, routes))
    return forwards


def _draw(
    sampling: Literal["continuous", "binomial"], group: Sequence[Site], scene: Scene, key: Key[Array, ""]
) -> Sources:
    numbers = site_numbers(scene.sites) | {name: (n,) for n, (_, _, name) in enumerate(members_in_order(scene.sites))}
    sources: Sources = {}
    for site in group:
        shape = (*scene.leading, site.C + int(scene.use_delta))
        u = for_each(site, numbers, lambda n, shape=shape: jax.random.uniform(jax.random.fold_in(key, n), shape))
        if sampling == "binomial":
            is_component = jnp.arange(shape[-1]) < site.C
            u = jnp.where(is_component, (u < 0.5).astype(u.dtype), u)
        sources[site.name] = u
    return sources


def _mixed(mixture: Mixture, group: Sequence[Site], scene: Scene, stored: Sources, key: Key[Array, ""]) -> Sources:
    """Sources ``[*leading, channels]``, each batch element's either persistent or drawn."""
    batch = scene.leading[0]
    drawn, effective = _draw(mixture.sampling, group, scene, key), effective_sources(stored, mixture.sigmoid)
    # Sites draw with the numbers below.
    above = sum(site.depth for site in scene.sites)
    adversarial = jax.random.bernoulli(jax.random.fold_in(key, above), mixture.adv_fraction, (batch,))
    chosen = adversarial.reshape(batch, *(1 for _ in scene.leading))
    axis = {site.name: len(site.stack) for site in group}
    return {s: jnp.where(chosen, spread(effective[s], batch, axis[s]), u) for s, u in drawn.items()}


def fresh_pgd(
    attack: FreshPGD,
    term: ReconTerm,
    scene: Scene,
    ci: Importances,
    group: Sequence[Site],
    routes: Routes,
    key: Key[Array, ""],
    start: Sources | None = None,
    record: Callable[[Sources], None] | None = None,
) -> Sources:
    """Sources after sign ascent, constant for what follows; one routing draw serves all ascents and the loss.

    Args:
        attack: its settings.
        term: the term it belongs to.
        scene: target, components, batch and clean output.
        ci: lower causal importances.
        group: the live sites.
        routes: routing of this forward.
        key: for a random start.
        start: sources to start from instead of a fresh draw.
        record: called with the sources after each ascent; the ascents are then unrolled.
    """
    shapes = source_shapes(group, attack.scope, scene.leading, scene.use_delta, attack.n_sources)
    sources = start if start is not None else _start(attack.init, shapes, key, group)
    held_scene, held_ci = scene.held(), {s: jax.lax.stop_gradient(x) for s, x in ci.items()}

    def ascent(_: object, now: Sources) -> Sources:
        gradients = jax.grad(lambda s: forward_divergence(term, held_scene, held_ci, s, routes))(now)
        return {s: clip01(x + attack.step_size * jnp.sign(gradients[s])) for s, x in now.items()}

    if record is None:
        sources = jax.lax.fori_loop(0, attack.n_steps, ascent, sources)
    else:
        for i in range(attack.n_steps):
            sources = ascent(i, sources)
            record(sources)
    return jax.lax.stop_gradient(sources)


def _start(init: str, shapes: Mapping[str, tuple[int, ...]], key: Key[Array, ""], group: Sequence[Site]) -> Sources:
    match init:
        case "ones":
            return {s: jnp.ones(shape) for s, shape in shapes.items()}
        case "zeroes":
            return {s: jnp.zeros(shape) for s, shape in shapes.items()}
        case _:
            return drawn_sources(group, shapes, key, jax.random.uniform)


def with_members(by_site: Importances, sites: Sequence[Site]) -> Importances:
    """The same, in which every single matrix of a stack is found by its path too."""
    return {name: by_site[site.name][i] for site, i, name in members_in_order(sites) if site.span} | dict(by_site)


def site_masks(term: ReconTerm, scene: Scene, ci: Importances, sources: Sources, routes: Routes) -> dict[str, Mask]:
    """Masks of the live sites, in the dtype of the importances."""
    masks: dict[str, Mask] = {}
    ci = with_members(ci, scene.sites) if sources.keys() - ci.keys() else ci
    for site, source in sources.items():
        if isinstance(term.source, Constant):
            component = ci[site] if term.source.value == 0 else jnp.ones_like(ci[site])
            masks[site] = SiteMask(component, None, routes[site])
        else:
            masks[site] = Interpolated(ci[site], source, routes[site])
    return masks


def forward_divergence(
    term: ReconTerm, scene: Scene, ci: Importances, sources: Sources, routes: Routes
) -> Float[Array, ""]:
    """One masked forward with given sources and routing: the mean over positions of its divergence, and its rider."""
    return with_rider(term, *forward_parts(term, scene, ci, sources, routes))


def forward_parts(term: ReconTerm, scene: Scene, ci: Importances, sources: Sources, routes: Routes) -> Parts:
    """One masked forward: the mean over positions of its divergence, and the unweighted error of its rider.

    The rider is ``Σ squared errors / Σ elements`` over the live sites it names; 0 where none of them is live.
    """

    def loss(components: ComponentSet, ci: Importances, sources: Sources) -> Parts:
        masks = site_masks(term, scene, ci, sources, routes)
        out, outputs = masked_site_outputs(
            scene.target, components, scene.batch, masks, scene.resume, scene.remat_layers
        )
        hidden = None if term.rider is None else _rider_error(scene, outputs, term.rider, masks)
        if term.measure == "hidden_acts":
            return _mean_error(scene, outputs, masks), hidden
        return jnp.mean(scene.target.divergence(scene.clean, out)), hidden

    run = jax.checkpoint(loss) if scene.remat else loss
    return run(scene.components, dict(ci), sources)


def _mean_error(scene: Scene, outputs: Mapping[str, Activation], sites: Collection[str]) -> Float[Array, ""]:
    errors, elements = hidden_act_errors(scene, outputs, sites)
    return sum((jnp.sum(x) for x in errors.values()), jnp.zeros(())) / max(1.0, float(sum(elements.values())))


def _rider_error(scene: Scene, outputs: Mapping[str, Activation], rider: Rider, live: Collection[str]) -> Array:
    """Mean error of the matrices that a rider names; of a stack it may be some."""
    members = {site.name: site.members for site in scene.sites if site.span is not None and site.name in live}
    chosen = {s: rider.among(members.get(s, (s,))) for s in live}
    errors, elements = hidden_act_errors(scene, outputs, [s for s, named in chosen.items() if named])
    total, count = jnp.zeros(()), 0
    for s, each in errors.items():
        own = members.get(s, (s,))
        places = jnp.asarray([own.index(name) for name in chosen[s]])
        total = total + jnp.sum(each.reshape(-1)[places])
        count += elements[s] // len(own) * len(chosen[s])
    return total / max(1.0, float(count))


def hidden_act_errors(
    scene: Scene, outputs: Mapping[str, Activation], sites: Iterable[str]
) -> tuple[dict[str, Float[Array, "..."]], dict[str, int]]:
    """Squared error of masked site outputs (bias included) against the clean ones: (sums, element counts).

    A stack has a sum for each of its matrices; its count is of all of them.
    """
    stacked = {site.name: len(site.stack) for site in scene.sites}
    clean = scene.clean_outputs
    if set(sites) - clean.keys():
        clean = with_members({s: dense(x) for s, x in clean.items()}, scene.sites)
    sums: dict[str, Float[Array, "..."]] = {}
    counts: dict[str, int] = {}
    for s in sites:
        a, b = (dense(x).astype(jnp.float32) for x in (outputs[s], clean[s]))
        sums[s] = jnp.sum(jnp.square(a - b), axis=tuple(range(stacked.get(s, 0), a.ndim)))
        counts[s] = a.size
    return sums, counts
