"""``total = Σ coeff · term`` in the order of the configuration, and the warm-up ascents that precede it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vpd.decomposition import ComponentSet
from vpd.importance import CausalImportances
from vpd.objective.adversary import AdversaryState, Sources, ascend
from vpd.objective.faithfulness import faithfulness_loss
from vpd.objective.minimality import ImportanceMinimality, SmoothL0
from vpd.objective.recon import Parts, Persistent, ReconTerm, Scene, persistent_loss, recon_parts, with_rider
from vpd.randomness import Seed, stream

Weights = Mapping[str, Float[Array, "..."]]

# What follows a term's key where its rider is logged.
HIDDEN = "hidden_acts"


@dataclass(frozen=True)
class Faithfulness:
    """FaithfulnessLoss with its coefficient."""

    name: str
    coeff: float


@dataclass(frozen=True)
class Minimality:
    """A sparsity loss with its coefficient."""

    name: str
    coeff: float
    penalty: ImportanceMinimality | SmoothL0


Term = Faithfulness | Minimality | ReconTerm


def persistent_terms(terms: Sequence[Term]) -> dict[str, tuple[ReconTerm, Persistent]]:
    """The terms that own sources in the training state, by name."""
    return {t.name: (t, t.source) for t in terms if isinstance(t, ReconTerm) and isinstance(t.source, Persistent)}


def warm_up_adversaries(
    terms: Sequence[Term],
    scene: Scene,
    ci: CausalImportances,
    adversaries: Mapping[str, AdversaryState],
    step: Int[Array, ""],
    steps: int,
) -> dict[str, AdversaryState]:
    """``n_warmup_steps`` ascents of every active persistent term: V, U and CI held, all sites, all positions."""
    moved: dict[str, AdversaryState] = {}
    for name, (term, spec) in persistent_terms(terms).items():
        climb = partial(_climb, term, spec, scene, ci.lower, spec.lr(step, steps))
        if spec.first_step == 0:
            moved[name] = climb(adversaries[name])
        else:
            moved[name] = jax.lax.cond(step >= spec.first_step, climb, lambda s: s, adversaries[name])
    return moved


def _climb(
    term: ReconTerm,
    spec: Persistent,
    scene: Scene,
    lower: Mapping[str, Array],
    lr: Float[Array, ""],
    state: AdversaryState,
) -> AdversaryState:
    """The warm-up ascents of one persistent term."""

    def ascent(state: AdversaryState, _: None) -> tuple[AdversaryState, None]:
        gradients = jax.grad(partial(persistent_loss, term, scene, lower))(state.sources)
        return ascend(state, gradients, lr, spec.optimizer, spec.sigmoid), None

    return jax.lax.scan(ascent, state, None, length=spec.n_warmup_steps)[0]


def total_loss(
    terms: Sequence[Term],
    scene: Scene,
    masters: ComponentSet,
    weights: Weights,
    ci: CausalImportances,
    sources: Mapping[str, Sources],
    step: Int[Array, ""],
    steps: int,
    seed: Seed,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The objective of one step and its terms by name; a term that is not active contributes nothing and logs NaN.

    A recon term logs its divergence, and its rider, which the total contains as well, as ``<name>/hidden_acts``.

    Args:
        terms: in the order of the configuration.
        scene: target, components in the compute dtype, batch, clean output.
        masters: V and U in float32, for faithfulness.
        weights: frozen weights, ``{site: [d_in, d_out]}``.
        ci: the two squashings of this step's one evaluation.
        sources: stored sources of each persistent term, after its warm-up ascents.
        step: updates made so far.
        steps: updates the run makes.
        seed: of the run.
    """
    total = jnp.zeros(())
    logs: dict[str, Float[Array, ""]] = {}
    for term in terms:
        match term:
            case Faithfulness():
                loss = faithfulness_loss(scene.sites, weights, masters)
                logs[term.name] = loss
            case Minimality(penalty=penalty):
                positions = 1
                for size in scene.leading:
                    positions *= size
                loss, beta_free = penalty.loss(
                    penalty.sums(ci.upper, step / steps, {s.name: len(s.stack) for s in scene.sites}), positions
                )
                logs |= {term.name: loss, f"{term.name}/beta_free": beta_free}
            case ReconTerm():
                divergence, hidden = _recon(term, scene, ci.lower, stream(seed, term.name, step), sources, step)
                loss = with_rider(term, divergence, hidden)
                logs |= _recon_logs(term, divergence, hidden, step)
        total = total + term.coeff * loss
    return total, logs


def _first_step(term: ReconTerm) -> int:
    """The first step at which a term is active; 0 where it always is."""
    return term.source.first_step if isinstance(term.source, Persistent) else 0


def _recon(
    term: ReconTerm,
    scene: Scene,
    lower: Mapping[str, Array],
    key: Key[Array, ""],
    sources: Mapping[str, Sources],
    step: Int[Array, ""],
) -> Parts:
    """The parts of a recon term, zero while it rests."""
    first = _first_step(term)
    if first == 0:
        return recon_parts(term, scene, lower, key, sources.get(term.name))

    def run(lower: Mapping[str, Array], stored: Sources) -> Parts:
        return recon_parts(term, scene, lower, key, stored)

    def rest(*_: object) -> Parts:
        return jnp.zeros(()), None if term.rider is None else jnp.zeros(())

    return jax.lax.cond(step >= first, run, rest, lower, sources[term.name])


def _recon_logs(
    term: ReconTerm, divergence: Float[Array, ""], hidden: Float[Array, ""] | None, step: Int[Array, ""]
) -> dict[str, Float[Array, ""]]:
    parts = {term.name: divergence} | ({} if hidden is None else {f"{term.name}/{HIDDEN}": hidden})
    first = _first_step(term)
    return {name: jnp.where(step >= first, x, jnp.nan) for name, x in parts.items()} if first else parts
