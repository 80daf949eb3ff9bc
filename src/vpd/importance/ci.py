"""From preactivations to the two causal importances of a step."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Float, Key

from vpd.decomposition import Site, for_each, site_numbers
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
    sites: Sequence[Site] = (),
) -> CausalImportances:
    """Squash the preactivations of every site.

    Args:
        preactivations: ``{site: z [*leading, C]}``.
        squash: the (lower, upper) pair.
        jitter: with binomial sampling a key: lower is then the squashing of ``1.05 z − 0.05 u``, u ~ U[0, 1]
            (method.md §4); upper has no noise.
        sites: the decomposed ones, for the noise.
    """
    lower, upper = squash
    noisy = dict(preactivations)
    if jitter is not None:
        numbers = site_numbers(sites)
        for site in sites:
            z = preactivations[site.name]
            shape = z.shape[len(site.stack) :]
            u = for_each(
                site, numbers, lambda n, s=shape, t=z.dtype: jax.random.uniform(jax.random.fold_in(jitter, n), s, t)
            )
            noisy[site.name] = 1.05 * z - 0.05 * u
    return CausalImportances(
        lower={site: lower(z) for site, z in noisy.items()},
        upper={site: upper(z) for site, z in preactivations.items()},
    )
