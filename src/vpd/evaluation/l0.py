"""CI_L0: how many subcomponents a position needs, per site and per group of sites."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import jax.numpy as jnp
from jaxtyping import Array, Float


def count_active(ci: Float[Array, "*leading C"], threshold: float) -> Float[Array, ""]:
    """Mean over positions of the number of entries strictly above the threshold."""
    return jnp.mean(jnp.sum(ci > threshold, axis=-1), dtype=jnp.float32)


def group_sites(sites: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Members of each group, a site once; patterns are globs over whole names: ``h.1.*`` doesn't match ``h.10.x``."""
    return {
        group: [site for site in sites if any(fnmatchcase(site, pattern) for pattern in patterns)]
        for group, patterns in groups.items()
    }
