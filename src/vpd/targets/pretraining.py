"""Trains a toy target in-process: AdamW on what it should compute, in one program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Weights = PyTree[Float[Array, "..."]]
Progress = Callable[[int], None]
_Carry = tuple[Weights, optax.OptState, Array]

DISPATCH = 250


def unseen(_: int) -> None:
    """The progress that nobody watches."""


def fit(
    weights: Weights,
    loss: Callable[[Weights, Int[Array, ""]], Float[Array, ""]],
    steps: int,
    lr: float | optax.Schedule,
    progress: Progress,
    weight_decay: float = 0.01,
) -> tuple[Weights, Float[Array, ""]]:
    """Minimise a loss of (weights, step).

    Args:
        weights: what is trained.
        loss: on the batch of a step.
        steps: number of updates.
        lr: constant, or a function of the step.
        progress: called with the steps made, every ``DISPATCH`` steps.
        weight_decay: decoupled.

    Returns:
        The trained weights, and the loss of the last step before its update.
    """
    optimizer = optax.adamw(lr, weight_decay=weight_decay)

    def update(i: Int[Array, ""], carry: _Carry) -> _Carry:
        trained, state, _ = carry
        value, gradients = jax.value_and_grad(loss)(trained, i)
        updates, state = optimizer.update(gradients, state, trained)
        return jax.tree.map(jnp.add, trained, updates), state, value

    @jax.jit
    def run(first: Int[Array, ""], last: Int[Array, ""], carry: _Carry) -> _Carry:
        return jax.lax.fori_loop(first, last, update, carry)

    # optax raises a float to an integer count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        carry = (weights, optimizer.init(weights), jnp.zeros(()))
        # In pieces, between which a signal is heard.
        for first in range(0, steps, DISPATCH):
            last = min(first + DISPATCH, steps)
            carry = run(jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32), carry)
            jax.block_until_ready(carry[2])
            progress(last)
    return carry[0], carry[2]
