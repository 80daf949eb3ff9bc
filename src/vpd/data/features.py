"""Sparse synthetic features for toy models."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

FeatureKind = Literal["at_least_zero_active", "exactly_one_active"]


def sparse_features(
    key: Key[Array, ""],
    leading: tuple[int, ...],
    n_features: int,
    probability: float,
    kind: FeatureKind = "at_least_zero_active",
    low: float = 0.0,
) -> Float[Array, "*leading n_features"]:
    """Features U[low, 1], each active with ``probability``; or exactly one active in each example.

    Args:
        key: random key.
        leading: for example ``(batch,)``.
        n_features: size of the last axis.
        probability: of a feature to be active; unused where exactly one is.
        kind: how many features are active.
        low: 0 for TMS, −1 for ResidMLP.
    """
    key_value, key_active = jax.random.split(key)
    values = jax.random.uniform(key_value, (*leading, n_features), minval=low)
    match kind:
        case "at_least_zero_active":
            active = jax.random.uniform(key_active, (*leading, n_features)) < probability
        case "exactly_one_active":
            active = jax.nn.one_hot(jax.random.randint(key_active, leading, 0, n_features), n_features, dtype=bool)
    return jnp.where(active, values, 0.0)


def single_features(n_features: int, magnitude: float = 0.75) -> Float[Array, "n_features n_features"]:
    """Each feature alone at ``magnitude``: the probe of method.md §10."""
    return jnp.asarray(magnitude * np.eye(n_features), jnp.float32)
