"""One training step, in the order of method.md §6."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.decomposition import Activation, ComponentSet, Site
from vpd.importance import CausalImportances, CIFunction, causal_importances, squash_pair
from vpd.objective import AdversaryState, ReconTerm, Scene, Term, ascend, total_loss, warm_up_adversaries
from vpd.objective.adversary import Sources
from vpd.objective.total import persistent_terms
from vpd.placement import whole_everywhere
from vpd.randomness import Seed, stream
from vpd.targets import LanguageModel, Target, clean_forward, frozen_weights, recorded_forward
from vpd.training.optimizers import Optimizer
from vpd.training.state import Decomposition, Training, TrainState

Tree = TypeVar("Tree")
Logs = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Problem:
    """All that is static about a run: sites, losses, optimizers, number of steps."""

    sites: tuple[Site, ...]
    terms: tuple[Term, ...]
    components_optimizer: Optimizer
    ci_fn_optimizer: Optimizer
    steps: int
    sigmoid_type: str = "leaky_hard"
    sampling: Literal["continuous", "binomial"] = "continuous"
    use_delta: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    remat_layers: bool = False
    reuse_prefix: bool = True


def cast_compute(problem: Problem, tree: Tree) -> Tree:
    """Floating-point leaves in the compute dtype; those that are in it already stay what they are."""
    dtype = jnp.dtype(problem.compute_dtype)

    def cast(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != dtype else x

    return jax.tree.map(cast, tree)


def leading_shape(problem: Problem, inputs: dict[str, Activation]) -> tuple[int, ...]:
    """``(batch,)`` or ``(batch, sequence)``, from the first site's input."""
    first = problem.sites[0]
    shape = inputs[first.name].shape[len(first.stack) :]
    return shape if first.kind == "embedding" else shape[:-1]


def importances(
    problem: Problem,
    ci_fn: CIFunction,
    components: ComponentSet,
    inputs: dict[str, Activation],
    step: Int[Array, ""] | int,
    seed: Seed,
) -> CausalImportances:
    """One evaluation of the CI function on clean site inputs, squashed twice."""
    z = cast_compute(problem, ci_fn)(inputs, cast_compute(problem, components))
    jitter = stream(seed, "ci/binomial", step) if problem.sampling == "binomial" else None
    return causal_importances(z, squash_pair(problem.sigmoid_type), jitter, problem.sites)


def lower_importances(
    problem: Problem, target: Target, decomposition: Decomposition, batch: Shaped[Array, "..."]
) -> dict[str, Array]:
    """Lower CI without sampling noise."""
    _, inputs = clean_forward(*cast_compute(problem, (target, batch)), problem.sites)
    quiet = replace(problem, sampling="continuous")
    return importances(quiet, decomposition.ci_fn, decomposition.components, inputs, 0, 0).lower


class Gradients(eqx.Module):
    """What one step learns: gradients of the total for both groups, and the adversaries after all their ascents."""

    components: ComponentSet
    ci_fn: CIFunction
    adversaries: dict[str, AdversaryState]


def clean_scene(
    problem: Problem, target: Target, components: ComponentSet, batch: Shaped[Array, "..."]
) -> tuple[Scene, dict[str, Activation]]:
    """What the masked forwards of a step share, from one clean forward, and the clean inputs of the sites."""
    net, x = cast_compute(problem, (target, batch))
    net = _embeddings_once(net)
    clean, inputs, outputs, resume = jax.lax.stop_gradient(recorded_forward(net, x, problem.sites))
    scene = Scene(
        target=net,
        components=cast_compute(problem, components),
        batch=x,
        clean=clean,
        sites=problem.sites,
        leading=leading_shape(problem, inputs),
        use_delta=problem.use_delta,
        remat=problem.remat,
        clean_outputs=outputs,
        resume=resume if problem.reuse_prefix else None,
        remat_layers=problem.remat_layers,
    )
    return scene, inputs


def _embeddings_once(net: Target) -> Target:
    """A language model whose weights outside of its layers are gathered here, for all forwards of a step together."""
    if not isinstance(net, LanguageModel):
        return net
    return replace(whole_everywhere(net), layers=net.layers)


def step_gradients(
    problem: Problem,
    target: Target,
    state: TrainState,
    batch: Shaped[Array, "..."],
    seed: Seed,
) -> tuple[Gradients, Logs]:
    """Everything of a step up to the updates of the parameters; arguments as for :func:`train_step`.

    Returns:
        Gradients and adversaries, and ``loss/<term>`` and ``loss/total``.
    """
    decomposition, step, steps = state.decomposition, state.training.step, problem.steps

    # clean, site inputs
    scene, inputs = clean_scene(problem, target, decomposition.components, batch)
    weights = frozen_weights(target, batch, problem.sites)

    # ci: one evaluation; its pull-back runs after the main backward
    def evaluate_ci(ci_fn: CIFunction, components: ComponentSet) -> CausalImportances:
        return importances(problem, ci_fn, components, inputs, step, seed)

    ci, pull_ci = jax.vjp(evaluate_ci, decomposition.ci_fn, decomposition.components)

    # warm-up ascents
    adversaries = warm_up_adversaries(problem.terms, scene, ci, state.training.adversaries, step, steps)

    # total and its gradients, of components, importances and sources; then the pull-back of the CI function
    def total(
        terms: Sequence[Term], components: ComponentSet, ci: CausalImportances, sources: dict[str, Sources]
    ) -> tuple[Array, Logs]:
        live = replace(scene, components=cast_compute(problem, components))
        return total_loss(terms, live, components, weights, ci, sources, step, steps, seed)

    sources = {name: adversary.sources for name, adversary in adversaries.items()}
    loss, losses, (g_components, g_ci, g_sources) = _by_term(
        problem.terms, total, decomposition.components, ci, sources, step
    )
    g_ci_fn, g_through_ci = pull_ci(g_ci)
    g_components = jax.tree.map(jnp.add, g_components, g_through_ci)

    # last ascent
    adversaries = last_ascents(problem, adversaries, g_sources, step)
    logs = {f"loss/{name}": value for name, value in losses.items()} | {"loss/total": loss}
    return Gradients(g_components, g_ci_fn, adversaries), logs


Total = Callable[[Sequence[Term], ComponentSet, CausalImportances, dict[str, Sources]], tuple[Array, Logs]]
GradientsOfTotal = tuple[ComponentSet, CausalImportances, dict[str, Sources]]
# The total so far, and its gradients: of components and of lower importances.
Sums = tuple[Array, ComponentSet, dict[str, Array]]


def _by_term(
    terms: Sequence[Term],
    total: Total,
    components: ComponentSet,
    ci: CausalImportances,
    sources: dict[str, Sources],
    step: Int[Array, ""],
) -> tuple[Array, Logs, GradientsOfTotal]:
    """The total, what it logs and its gradients, one recon term after the other."""
    plain = [term for term in terms if not isinstance(term, ReconTerm)]
    (loss, logs), (g_components, g_ci) = jax.value_and_grad(total, (1, 2), has_aux=True)(plain, components, ci, {})
    sums: Sums = (loss, g_components, g_ci.lower)
    g_sources: dict[str, Sources] = {}
    for term in terms:
        if isinstance(term, ReconTerm):
            own = {name: sources[name] for name in persistent_terms([term])}
            sums, logged, by_own = _add_term(term, total, sums, components, ci, own, step)
            logs, g_sources = logs | logged, g_sources | by_own
    loss, g_components, lower = sums
    return loss, logs, (g_components, replace(g_ci, lower=lower), g_sources)


def _add_term(
    term: ReconTerm,
    total: Total,
    sums: Sums,
    components: ComponentSet,
    ci: CausalImportances,
    own: dict[str, Sources],
    step: Int[Array, ""],
) -> tuple[Sums, Logs, dict[str, Sources]]:
    """Add one recon term to the total and its gradients; also what it logs and the gradients of its own sources.

    What a term keeps for its backward pass ends with it, because it is a computation of its own: a branch that is
    always taken, which the compiler can't know. A barrier orders nothing on CPU. The sums go through it, so that no
    two terms' gradients, nor the weight deltas of faithfulness, wait beside each other to be added up at the end.
    """

    def recon(components: ComponentSet, lower: dict[str, Array], own: dict[str, Sources]) -> tuple[Array, Logs]:
        return total([term], components, replace(ci, lower=lower), own)

    @partial(jax.jit, inline=True)  # traced once, for its shapes and for the branch
    def add(
        sums: Sums, components: ComponentSet, lower: dict[str, Array], own: dict[str, Sources]
    ) -> tuple[Sums, Logs, dict[str, Sources]]:
        gradients = jax.value_and_grad(recon, (0, 1, 2), has_aux=True)
        (one, logged), (by_components, by_lower, by_own) = gradients(components, lower, own)
        return jax.tree.map(jnp.add, sums, (one, by_components, by_lower)), logged, by_own

    given = (sums, components, ci.lower, own)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(add, *given)[1:])
    return jax.lax.cond(step >= 0, add, lambda sums, *_: (sums, *nothing), *given)


def train_step(
    problem: Problem,
    target: Target,
    state: TrainState,
    batch: Shaped[Array, "..."],
    seed: Seed,
) -> tuple[TrainState, Logs]:
    """One update of components, CI function and adversaries.

    Args:
        problem: the static part.
        target: the frozen network, an argument and never a constant of the program.
        state: parameters, moments, adversaries and step counter before the update.
        batch: input of the target, ``[*leading, ...]``.
        seed: of the run; every draw is a function of it, the step and a stream name.

    Returns:
        The state after the update, and scalars: ``loss/<term>`` and ``loss/total`` as they were before it, and the
        gradient norms before clipping.
    """
    decomposition, training = state.decomposition, state.training
    step, steps = training.step, problem.steps
    gradients, logs = step_gradients(problem, target, state, batch, seed)
    components, components_optimizer, components_norm = problem.components_optimizer.update(
        decomposition.components, gradients.components, training.components_optimizer, step, steps
    )
    ci_fn, ci_fn_optimizer, ci_fn_norm = problem.ci_fn_optimizer.update(
        decomposition.ci_fn, gradients.ci_fn, training.ci_fn_optimizer, step, steps
    )
    logs |= {"grad_norm/components": components_norm, "grad_norm/ci_fn": ci_fn_norm}
    updated = TrainState(
        Decomposition(components, ci_fn),
        Training(components_optimizer, ci_fn_optimizer, gradients.adversaries, step + 1),
    )
    return updated, logs


def last_ascents(
    problem: Problem,
    adversaries: dict[str, AdversaryState],
    gradients: dict[str, Sources],
    step: Int[Array, ""],
) -> dict[str, AdversaryState]:
    """The ascent that shares the main backward: its gradient is unscaled by the term's coefficient."""
    moved: dict[str, AdversaryState] = {}
    for name, (term, spec) in persistent_terms(problem.terms).items():
        unscaled = {site: g / term.coeff for site, g in gradients[name].items()}
        ascended = ascend(adversaries[name], unscaled, spec.lr(step, problem.steps), spec.optimizer, spec.sigmoid)
        if spec.first_step > 0:
            active = step >= spec.first_step
            ascended = jax.tree.map(lambda new, old, on=active: jnp.where(on, new, old), ascended, adversaries[name])
        moved[name] = ascended
    return moved


Draw = Callable[[Seed, Int[Array, ""]], Shaped[Array, "..."]]


# Scalars without which no step follows.
STOPPING = ("loss/total", "grad_norm/components", "grad_norm/ci_fn")

_Carry = tuple[Int[Array, ""], TrainState, Logs]


def run_steps(
    problem: Problem,
    target: Target,
    state: TrainState,
    n: Int[Array, ""],
    seed: Seed,
    draw: Draw,
) -> tuple[TrainState, Logs]:
    """Up to ``n`` steps in one program; ``n`` is a traced trip count, so one compile serves every dispatch.

    Stops after a step whose total or gradients are not finite.

    Args:
        problem: the static part.
        target: the frozen network.
        state: before the first of these steps.
        n: how many, at least 1.
        seed: of the run.
        draw: the batch of (seed, step), for data that is made on the device.

    Returns:
        The state after the last step and that step's scalars.
    """

    @partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
    def one(state: TrainState) -> tuple[TrainState, Logs]:
        return train_step(problem, target, state, draw(seed, state.training.step), seed)

    def body(carry: _Carry) -> _Carry:
        done, state, _ = carry
        return done + 1, *one(state)

    def proceed(carry: _Carry) -> Array:
        done, _, logs = carry
        sound = [jnp.isfinite(logs[name]) for name in STOPPING]
        return (done < n) & ((done == 0) | jnp.all(jnp.stack(sound)))

    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, state)[1])
    _, state, logs = jax.lax.while_loop(proceed, body, (jnp.zeros_like(n), state, empty))
    return state, logs
