"""AdamW and Muon with a clip of the global norm and a schedule of the step counter (method.md §6)."""

import math
from dataclasses import dataclass
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from optax import contrib

from vpd.objective.adam import adam_direction
from vpd.objective.schedule import Schedule

Tree = TypeVar("Tree")

# Jordan et al. 2024: the quintic iteration that Optax has as its standard.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Moments(eqx.Module):
    """Raw moments of one group of parameters, each of the parameters' own structure; None where a rule keeps none."""

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
        gradients, norm = clip_by_norm(gradients, self.clip_norm)
        direction, m, v = adam_direction(gradients, moments.m, moments.v, step + 1, self.betas, self.eps)
        return descend(params, direction, self.lr(step, steps), self.weight_decay), Moments(m, v), norm


@dataclass(frozen=True)
class Muon:
    """Matrices move along their orthogonalised Nesterov momentum (Jordan et al. 2024), the rest as under AdamW.

    Optax makes the direction: ``ns_steps`` Newton-Schulz iterations bring the singular values near 1. A matrix
    ``[d_in, d_out]`` is then scaled by ``√max(1, d_out / d_in)``, as there. Each matrix of a stack is orthogonalised by
    itself. ``betas[0]`` is the momentum of matrices and the first moment of the rest, which alone has ``betas[1]``. One
    learning rate, decoupled weight decay and clip serve both.
    """

    lr: Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ns_steps: int = 5
    eps: float = 1e-8

    def init(self, params: PyTree[Float[Array, "..."]]) -> Moments:
        """Zero moments; matrices have no second one."""
        _, rest = split_matrices(params)
        return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, rest))

    def update(
        self, params: Tree, gradients: Tree, moments: Moments, step: Int[Array, ""], steps: int
    ) -> tuple[Tree, Moments, Float[Array, ""]]:
        """New parameters, new moments, and the global gradient norm before clipping; as :meth:`AdamW.update`."""
        gradients, norm = clip_by_norm(gradients, self.clip_norm)
        matrices, rest = split_matrices(gradients)
        momenta, m_rest = split_matrices(moments.m)
        leaves, structure = jax.tree.flatten(matrices)
        directions, momenta = self._orthogonalised(leaves, jax.tree.leaves(momenta), step)
        by_muon, m_muon = (jax.tree.unflatten(structure, part) for part in (directions, momenta))
        by_adam, m_rest, v = adam_direction(rest, m_rest, moments.v, step + 1, self.betas, self.eps)
        moved = descend(params, eqx.combine(by_muon, by_adam), self.lr(step, steps), self.weight_decay)
        return moved, Moments(eqx.combine(m_muon, m_rest), v), norm

    def _orthogonalised(
        self, gradients: list[Array], momenta: list[Array], step: Int[Array, ""]
    ) -> tuple[list[Array], list[Array]]:
        """Directions and new momenta of the matrices; Optax's counter is our step, and no state of its own is kept."""
        axes = [contrib.MuonDimensionNumbers(-2, -1)] * len(gradients)
        rule = contrib.scale_by_muon(
            NEWTON_SCHULZ, self.ns_steps, self.betas[0], self.eps, weight_dimension_numbers=axes
        )
        # optax raises floats to integer counts, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            given = contrib.MuonState(step, momenta, jnp.asarray(NEWTON_SCHULZ))
            directions, state = rule.update(gradients, given)
        assert isinstance(state, contrib.MuonState)
        scaled = [x * math.sqrt(max(1, x.shape[-1] / x.shape[-2])) for x in jax.tree.leaves(directions)]
        return scaled, jax.tree.leaves(state.mu)


Optimizer = AdamW | Muon


def is_matrix(path: tuple[object, ...], array: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether Muon orthogonalises a parameter: a matrix or a stack of them, no side of which is 1, and no bias ``b``.

    The gates ``[C, 1, hidden]`` and ``[C, hidden, 1]`` are vectors, a stack of biases ``[C, hidden]`` is no matrix.
    """
    is_bias = jax.tree_util.keystr(path[-1:], simple=True) == "b"
    return not is_bias and array.ndim >= 2 and min(array.shape[-2:]) > 1


def split_matrices(params: Tree) -> tuple[Tree, Tree]:
    """The parameters that Muon orthogonalises, and the rest; each has None in place of the others."""
    return eqx.partition(params, jax.tree_util.tree_map_with_path(is_matrix, params))


def clip_by_norm(gradients: Tree, max_norm: float | None) -> tuple[Tree, Float[Array, ""]]:
    """Gradients times ``min(1, max_norm / (norm + 1e-6))``, and their global norm before that."""
    norm = optax.tree.norm(gradients)
    if max_norm is None:
        return gradients, norm
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradients), norm


def descend(params: Tree, direction: Tree, lr: Float[Array, ""], weight_decay: float) -> Tree:
    """``p (1 − lr·wd) − lr·direction``."""
    decay = 1 - lr * weight_decay
    return jax.tree.map(lambda p, d: p * decay - lr * d, params, direction)
