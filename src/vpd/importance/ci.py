"""From preactivations to the two causal importances of a step."""

from collections.abc import Mapping

import equinox as eqx
import jax
from jaxtyping import Array, Float, Key

from vpd.importance.squash import Squashing


class CausalImportances(eqx.Module):
    """Two squashings of the same preactivations, each ``{site: [*leading, C]}``.

    Attributes:
        lower: feeds the masks.
        upper: feeds the sparsity losses.
    """

    lower: dict[str, Float[Array, "..."]]
    upper: dict[str, Float[Array, "..."]]


def causal_importances(
    preactivations: Mapping[str, Float[Array, "..."]],
    squash: tuple[Squashing, Squashing],
    jitter: Key[Array, ""] | None = None,
) -> CausalImportances:
    """Squash the preactivations of every site.

    Args:
        preactivations: ``{site: z [*leading, C]}``.
        squash: the (lower, upper) pair.
        jitter: with binomial sampling a key: lower is then the squashing of ``1.05 z − 0.05 u``, u ~ U[0, 1]
            (method.md §4); upper has no noise.
    """
    lower, upper = squash
    lowered: dict[str, Float[Array, "..."]] = {}
    for index, (site, z) in enumerate(preactivations.items()):
        noisy = z
        if jitter is not None:
            noisy = 1.05 * z - 0.05 * jax.random.uniform(jax.random.fold_in(jitter, index), z.shape, z.dtype)
        lowered[site] = lower(noisy)
    return CausalImportances(lower=lowered, upper={site: upper(z) for site, z in preactivations.items()})
