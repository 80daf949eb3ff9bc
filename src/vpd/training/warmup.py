"""Faithfulness warm-up: V and U learn to sum to the weights before the first step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.decomposition import ComponentSet
from vpd.objective import Schedule, faithfulness_loss
from vpd.targets import Target, frozen_weights
from vpd.training.optimizers import AdamW, Moments
from vpd.training.state import TrainState
from vpd.training.step import Problem


def faithfulness_warmup(
    problem: Problem,
    target: Target,
    state: TrainState,
    batch: Shaped[Array, "..."],
    steps: int,
    lr: float,
    weight_decay: float,
) -> TrainState:
    """``steps`` of AdamW on faithfulness alone for V and U; its optimizer is discarded (method.md §6).

    Args:
        problem: the static part.
        target: the frozen network.
        state: before the first step.
        batch: any input of the target, for its shapes.
        steps: number of updates.
        lr: constant learning rate.
        weight_decay: decoupled.
    """
    optimizer = AdamW(Schedule(lr), weight_decay=weight_decay)

    @jax.jit
    def run(components: ComponentSet, target: Target, batch: Array, n: Int[Array, ""]) -> ComponentSet:
        weights = frozen_weights(target, batch, problem.sites)

        def loss(components: ComponentSet) -> Float[Array, ""]:
            return faithfulness_loss(problem.sites, weights, components)

        def update(i: Int[Array, ""], carry: tuple[ComponentSet, Moments]) -> tuple[ComponentSet, Moments]:
            components, moments = carry
            components, moments, _ = optimizer.update(components, jax.grad(loss)(components), moments, i, steps)
            return components, moments

        start = (components, optimizer.init(components))
        return jax.lax.fori_loop(jnp.zeros_like(n), n, update, start)[0]

    components = run(state.decomposition.components, target, batch, jnp.asarray(steps, jnp.int32))
    return replace(state, decomposition=replace(state.decomposition, components=components))
