"""``total = Σ coeff · term`` in the order of the configuration, and the warm-up ascents that precede it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vpd.decomposition import ComponentSet
from vpd.importance import CausalImportances
from vpd.objective.adversary import AdversaryState, Sources, ascend
from vpd.objective.faithfulness import faithfulness_loss
from vpd.objective.minimality import ImportanceMinimality, SmoothL0
from vpd.objective.recon import Persistent, ReconTerm, Scene, persistent_loss, recon_loss
from vpd.randomness import Seed, stream

Weights = Mapping[str, Float[Array, "..."]]


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
            case Minimality(penalty=penalty):
                positions = 1
                for size in scene.leading:
                    positions *= size
                loss, logs[f"{term.name}/beta_free"] = penalty.loss(penalty.sums(ci.upper, step / steps), positions)
            case ReconTerm(source=Persistent(first_step=first)) if first > 0:
                run = partial(recon_loss, term, scene, key=stream(seed, term.name, step))
                active = step >= first
                loss = jax.lax.cond(
                    active,
                    lambda lower, stored, run=run: run(lower, stored=stored),
                    lambda *_: jnp.zeros(()),
                    ci.lower,
                    sources[term.name],
                )
                total = total + term.coeff * loss
                logs[term.name] = jnp.where(active, loss, jnp.nan)
                continue
            case ReconTerm():
                key = stream(seed, term.name, step)
                loss = recon_loss(term, scene, ci.lower, key, sources.get(term.name))
        logs[term.name] = loss
        total = total + term.coeff * loss
    return total, logs
