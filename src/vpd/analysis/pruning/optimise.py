"""A small subset that keeps a behaviour: importances of one prompt, optimised against masks on the rest.

Free are CI preactivations z of the alive subcomponents at each position, at the start all 1. What is minimised is what
is asked of the prompt, and ``coeff · Σ ci_upper^p`` over all of them, p going from 2 to 0.4 (method.md §4 and 11): at
its end every subcomponent that is kept costs about ``coeff`` nats. Half of the rows have stochastic masks on the rest;
in the other half a persistent adversary has those of the discarded alive ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vpd.analysis.pruning.measures import REST, adversarial_sources, drawn_sources
from vpd.analysis.pruning.question import Importances, Members, Question
from vpd.importance.squash import lower_leaky_hard, upper_leaky_hard
from vpd.objective import AdamAscent, AdversaryState, ImportanceMinimality, ascend
from vpd.objective.adam import adam_direction
from vpd.objective.adversary import Sources
from vpd.objective.minimality import Anneal
from vpd.objective.recon import Constant, ReconTerm, forward_divergence
from vpd.randomness import stream

AS_MASKS = ReconTerm("as masks", 1.0, Constant(0))
PENALTY = ImportanceMinimality(Anneal(2.0, 0.4, 0.0, 1.0), beta=0.0)
BETAS = (0.9, 0.999)
ASCENT, ASCENT_RATE, ASCENTS = AdamAscent(0.5, 0.99), 0.05, 2
# Steps of one dispatch.
TOGETHER = 25


@dataclass(frozen=True)
class Effort:
    """How long and how hard.

    Attributes:
        steps: updates of z.
        coeff: what a subcomponent costs at one position, in units of what is asked.
        lr: of Adam, at the start of a cosine to 0.
        seed: of the draws.
        faithful: stochastic and adversarial masks on the rest; else importances are the masks.
    """

    steps: int
    coeff: float
    lr: float = 0.05
    seed: int = 0
    faithful: bool = True


class _State(eqx.Module):
    z: Importances
    m: Importances
    v: Importances
    adversary: AdversaryState


def optimise(
    question: Question, alive: Members, effort: Effort, watch: Callable[[int], None] = lambda done: None
) -> Importances:
    """Lower importances of the subset, ``{site: [*stack, 1, *positions, C]}``; 0 where it was discarded.

    Args:
        question: about the prompt.
        alive: which subcomponents are free, where; the others are never kept.
        effort: how long and how hard.
        watch: called with the number of steps made.
    """
    z = {s: jnp.ones(x.shape) for s, x in alive.items()}
    start = drawn_sources(question, stream(effort.seed, "pruning/start"))
    nothing = {s: jnp.zeros_like(x) for s, x in start.items()}
    adversary = AdversaryState(start, nothing, dict(nothing), jnp.zeros((), jnp.int32))
    zero = {s: jnp.zeros_like(x) for s, x in z.items()}
    state = _State(z, zero, dict(zero), adversary)
    several = jax.jit(partial(_steps, effort))
    for first in range(0, effort.steps, TOGETHER):
        n = min(TOGETHER, effort.steps - first)
        state = several(question, alive, state, jnp.asarray(first, jnp.int32), jnp.asarray(n, jnp.int32))
        watch(first + n)
    return _lower(state.z, alive)


def _steps(
    effort: Effort,
    question: Question,
    alive: Members,
    state: _State,
    first: Int[Array, ""],
    n: Int[Array, ""],
) -> _State:
    def step(i: Int[Array, ""], state: _State) -> _State:
        key = stream(effort.seed, "pruning", i)
        adversary = _climb(question, alive, state, key) if effort.faithful else state.adversary
        loss = partial(_loss, effort, question, alive, adversary.sources, key, i)
        slopes = jax.grad(loss)(state.z)
        direction, m, v = adam_direction(slopes, state.m, state.v, i + 1, BETAS, 1e-8)
        lr = effort.lr * 0.5 * (1 + jnp.cos(jnp.pi * (i / effort.steps)))
        return _State({s: x - lr * direction[s] for s, x in state.z.items()}, m, v, adversary)

    return jax.lax.fori_loop(first, first + n, step, state)


def _climb(question: Question, alive: Members, state: _State, key: Key[Array, ""]) -> AdversaryState:
    """The ascents of a step; importances are held."""
    g = _lower(state.z, alive)

    def ascent(i: Int[Array, ""], now: AdversaryState) -> AdversaryState:
        drawn = jax.random.fold_in(key, i)
        slopes = jax.grad(lambda stored: _masked(question, alive, g, stored, drawn))(now.sources)
        return ascend(now, slopes, ASCENT_RATE, ASCENT, sigmoid=False)

    return jax.lax.fori_loop(0, ASCENTS, ascent, state.adversary)


def _masked(
    question: Question, alive: Members, g: Importances, stored: Sources, key: Key[Array, ""]
) -> Float[Array, ""]:
    """What is asked, the mean over rows of which the second half is the adversary's."""
    rows = question.scene.leading[0]
    mine = jnp.arange(rows) >= rows // 2
    sources = adversarial_sources(question, question.spread(alive), drawn_sources(question, key), stored, mine)
    return forward_divergence(REST, question.scene, question.spread(g), sources, dict.fromkeys(sources))


def _loss(
    effort: Effort,
    question: Question,
    alive: Members,
    stored: Sources,
    key: Key[Array, ""],
    step: Int[Array, ""],
    z: Importances,
) -> Float[Array, ""]:
    g = _lower(z, alive)
    if effort.faithful:
        asked = _masked(question, alive, g, stored, jax.random.fold_in(key, ASCENTS))
    else:
        unused = dict.fromkeys(g, jnp.zeros(()))
        asked = forward_divergence(AS_MASKS, question.scene, question.spread(g), unused, dict.fromkeys(g))
    upper = {s: jnp.where(alive[s], upper_leaky_hard(x), 0.0) for s, x in z.items()}
    return asked + effort.coeff * PENALTY.loss(PENALTY.sums(upper, step / effort.steps), 1)[0]


def _lower(z: Importances, alive: Members) -> Importances:
    return {s: jnp.where(alive[s], lower_leaky_hard(x), 0.0) for s, x in z.items()}
