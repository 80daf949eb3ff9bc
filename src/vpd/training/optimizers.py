"""AdamW with a clip of the global norm and a schedule of the step counter (method.md §6)."""

from dataclasses import dataclass
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from vpd.objective.adam import adam_direction
from vpd.objective.schedule import Schedule

Tree = TypeVar("Tree")


class Moments(eqx.Module):
    """Raw moments of one group of parameters, each of the parameters' own structure."""

    m: PyTree[Float[Array, "..."]]
    v: PyTree[Float[Array, "..."]]


@dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay ``p ← p (1 − lr·wd)``, eps outside the root, optional clip of the global norm."""

    lr: Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    eps: float = 1e-8

    def init(self, params: PyTree[Float[Array, "..."]]) -> Moments:
        """Zero moments."""
        return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(
        self, params: Tree, gradients: Tree, moments: Moments, step: Int[Array, ""], steps: int
    ) -> tuple[Tree, Moments, Float[Array, ""]]:
        """New parameters, new moments, and the global gradient norm before clipping.

        Args:
            params: pytree of arrays.
            gradients: of the same structure.
            moments: before this update.
            step: updates made so far.
            steps: updates the run makes, for the schedule.
        """
        norm = optax.tree.norm(gradients)
        if self.clip_norm is not None:
            scale = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        direction, m, v = adam_direction(gradients, moments.m, moments.v, step + 1, self.betas, self.eps)
        lr = self.lr(step, steps)
        decay = 1 - lr * self.weight_decay
        return jax.tree.map(lambda p, d: p * decay - lr * d, params, direction), Moments(m, v), norm
