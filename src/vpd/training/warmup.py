"""Faithfulness warm-up: V and U learn to sum to the weights before the first step."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.decomposition import ComponentSet
from vpd.hosts import first_says
from vpd.objective import Schedule, faithfulness_loss
from vpd.targets import Target, frozen_weights
from vpd.training.loop import dispatch_limit
from vpd.training.optimizers import AdamW, Moments
from vpd.training.state import TrainState
from vpd.training.step import Problem

_Carry = tuple[ComponentSet, Moments]


def faithfulness_warmup(
    problem: Problem,
    target: Target,
    state: TrainState,
    batch: Shaped[Array, "..."],
    steps: int,
    lr: float,
    weight_decay: float,
    made: Callable[[int], None] = lambda _: None,
) -> TrainState:
    """``steps`` of AdamW on faithfulness alone for V and U; its optimizer is discarded (method.md §6).

    Args:
        problem: the static part.
        target: the frozen network.
        state: before the first step; it stays as it is.
        batch: any input of the target, for its shapes.
        steps: number of updates.
        lr: constant learning rate.
        weight_decay: decoupled.
        made: told the number of updates made, about twice a second.
    """
    optimizer = AdamW(Schedule(lr), weight_decay=weight_decay)

    @partial(jax.jit, donate_argnums=0)
    def run(carry: _Carry, target: Target, batch: Array, first: Int[Array, ""], n: Int[Array, ""]) -> _Carry:
        weights = frozen_weights(target, batch, problem.sites)

        def loss(components: ComponentSet) -> Float[Array, ""]:
            return faithfulness_loss(problem.sites, weights, components)

        def update(i: Int[Array, ""], carry: _Carry) -> _Carry:
            components, moments = carry
            components, moments, _ = optimizer.update(components, jax.grad(loss)(components), moments, i, steps)
            return components, moments

        return jax.lax.fori_loop(first, first + n, update, carry)

    components = jax.tree.map(jnp.copy, state.decomposition.components)
    carry, done, seconds_per_step = (components, optimizer.init(components)), 0, None
    while done < steps:
        n = min(dispatch_limit("auto", seconds_per_step), steps - done)
        start = time.perf_counter()
        carry = jax.block_until_ready(run(carry, target, batch, *(jnp.asarray(v, jnp.int32) for v in (done, n))))
        # The first dispatch holds the compilation; all processes of a run make as many steps a dispatch.
        seconds_per_step = first_says((time.perf_counter() - start) / n)
        done += n
        made(done)
    return replace(state, decomposition=replace(state.decomposition, components=carry[0]))
