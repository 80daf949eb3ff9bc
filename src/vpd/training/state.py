"""One pytree is all that a run is: what readers load, and what only training needs."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vpd.decomposition import ComponentSet
from vpd.importance import CIFunction
from vpd.objective import AdversaryState
from vpd.training.optimizers import Moments


class Decomposition(eqx.Module):
    """What a reader needs: V and U of every site, and the CI function."""

    components: ComponentSet
    ci_fn: CIFunction


class Training(eqx.Module):
    """Optimizer states of both groups, the persistent adversaries by term, and the number of updates made."""

    components_optimizer: Moments
    ci_fn_optimizer: Moments
    adversaries: dict[str, AdversaryState]
    step: Int[Array, ""]


class TrainState(eqx.Module):
    """The whole state of a run. It holds no random state: draws come from (seed, step, stream)."""

    decomposition: Decomposition
    training: Training


def state_bytes(state: TrainState) -> int:
    """Bytes of all arrays in the state, abstract or real."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
