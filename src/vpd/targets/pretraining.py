"""Trains a toy target in-process: AdamW on what it should compute, in one program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Weights = PyTree[Float[Array, "..."]]


def fit(
    weights: Weights,
    loss: Callable[[Weights, Int[Array, ""]], Float[Array, ""]],
    steps: int,
    lr: float | optax.Schedule,
    weight_decay: float = 0.01,
) -> tuple[Weights, Float[Array, ""]]:
    """Minimise a loss of (weights, step).

    Args:
        weights: what is trained.
        loss: on the batch of a step.
        steps: number of updates.
        lr: constant, or a function of the step.
        weight_decay: decoupled.

    Returns:
        The trained weights, and the loss of the last step before its update.
    """
    optimizer = optax.adamw(lr, weight_decay=weight_decay)

    def update(
        i: Int[Array, ""], carry: tuple[Weights, optax.OptState, Array]
    ) -> tuple[Weights, optax.OptState, Array]:
        trained, state, _ = carry
        value, gradients = jax.value_and_grad(loss)(trained, i)
        updates, state = optimizer.update(gradients, state, trained)
        return jax.tree.map(jnp.add, trained, updates), state, value

    @jax.jit
    def run(trained: Weights, n: Int[Array, ""]) -> tuple[Weights, Array]:
        first = (trained, optimizer.init(trained), jnp.zeros(()))
        trained, _, value = jax.lax.fori_loop(jnp.zeros_like(n), n, update, first)
        return trained, value

    # optax raises a float to an integer count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return run(weights, jnp.asarray(steps, jnp.int32))
