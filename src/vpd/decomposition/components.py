"""V and U of every site, who shares them with whom, and how they start."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

SiteKind = Literal["linear", "embedding", "identity"]


@dataclass(frozen=True)
class Site:
    """One weight matrix chosen for decomposition.

    Attributes:
        name: its path in the target, for example ``h.0.mlp.c_fc``.
        d_in: rows of W (the vocabulary size for an embedding).
        d_out: columns of W.
        C: number of subcomponents.
        kind: ``linear`` (``x @ W``), ``embedding`` (``W[x]``) or ``identity`` (W is the identity, never stored).
    """

    name: str
    d_in: int
    d_out: int
    C: int
    kind: SiteKind = "linear"


class Components(eqx.Module):
    """The rank-one pieces of one site: subcomponent c is ``V[:, c] ⊗ U[c, :]``."""

    V: Float[Array, "d_in C"]
    U: Float[Array, "C d_out"]

    @property
    def transposed(self) -> "Components":
        """The same pieces for the transposed weight: ``V' = Uᵀ``, ``U' = Vᵀ``."""
        return Components(V=self.U.T, U=self.V.T)


class ComponentSet(eqx.Module):
    """Components of all sites, looked up by site name.

    A tied site owns no arrays: it is a transposed view of its owner, so that gradients of both uses are summed and one
    update is made (method.md §9).

    Attributes:
        owned: pieces of the sites that own arrays.
        ties: pairs (tied site, its owner).
    """

    owned: dict[str, Components]
    ties: tuple[tuple[str, str], ...] = eqx.field(static=True, default=())

    def __getitem__(self, site: str) -> Components:
        """Components of one site, V ``[d_in, C]`` and U ``[C, d_out]``."""
        owner = dict(self.ties).get(site)
        return self.owned[site] if owner is None else self.owned[owner].transposed

    def __iter__(self) -> Iterator[str]:
        """Names of the sites that own arrays, then of the tied ones."""
        yield from self.owned
        yield from (site for site, _ in self.ties)


def init_components(
    sites: Sequence[Site],
    key: Key[Array, ""],
    ties: Sequence[tuple[str, str]] = (),
    weights: Mapping[str, Float[Array, "..."]] | None = None,
) -> ComponentSet:
    """Normal V with standard deviation 1/√d_in and U with 1/√C (method.md §3), or the singular pairs of the weights.

    One member of a tied pair can start so, the other is its transpose: from normal draws it is the second that does,
    which matters to whether features merge (docs/reproductions.md); from weights the owner.

    Args:
        sites: all sites.
        key: random key; a site's draw depends on its position in ``sites`` alone.
        ties: pairs (owner, site); the second is the transposed view of the first.
        weights: frozen weights ``{site: [d_in, d_out]}``, none for an identity; where given, their singular pairs are
            where V and U start (:func:`singular_pairs`).

    Raises:
        ValueError: a tied pair whose shapes are not each other's transpose, or whose C differ.
    """
    by_name: Mapping[str, Site] = {site.name: site for site in sites}
    for first, second in ties:
        a, b = by_name[first], by_name[second]
        if (a.d_in, a.d_out, a.C) != (b.d_out, b.d_in, b.C):
            raise ValueError(
                f"sites {first!r} [{a.d_in}, {a.d_out}] with C {a.C} and {second!r} [{b.d_in}, {b.d_out}] with C {b.C} "
                "can't be tied: a tied pair has transposed shapes and equal C"
            )
    view_of = {second: first for first, second in ties}
    tied_to = {first: by_name[second] for first, second in ties}
    owned: dict[str, Components] = {}
    for index, site in enumerate(sites):
        if site.name in view_of:
            continue
        key_v, key_u = jax.random.split(jax.random.fold_in(key, index))
        if weights is not None:
            W = jnp.eye(site.d_in) if site.kind == "identity" else weights[site.name]
            owned[site.name] = singular_pairs(W, site.C, key_v)
            continue
        drawn = tied_to.get(site.name, site)
        V = jax.random.normal(key_v, (drawn.d_in, drawn.C)) / math.sqrt(drawn.d_in)
        U = jax.random.normal(key_u, (drawn.C, drawn.d_out)) / math.sqrt(drawn.C)
        pieces = Components(V=V, U=U)
        owned[site.name] = pieces.transposed if site.name in tied_to else pieces
    return ComponentSet(owned=owned, ties=tuple(view_of.items()))


def singular_pairs(weight: Float[Array, "d_in d_out"], C: int, key: Key[Array, ""]) -> Components:
    """Subcomponent c is singular pair c of W, the largest first, with the root of its singular value on either side.

    For C up to the rank of W, ``V @ U`` is the nearest matrix of rank C (Eckart & Young 1936). Subcomponents beyond the
    rank start with a normal V and U = 0: they add nothing to ``V @ U``, and learn through U.

    Args:
        weight: frozen, in float32.
        C: number of subcomponents.
        key: of the normal V.
    """
    d_in, d_out = weight.shape
    left, values, right = jnp.linalg.svd(weight, full_matrices=False)
    pairs = min(C, values.size)
    roots = jnp.sqrt(values[:pairs])
    drawn = jax.random.normal(key, (d_in, C)) / math.sqrt(d_in)
    # A singular value that is rounding would leave both sides at 0, where neither has a gradient.
    carries = values[:pairs] > max(d_in, d_out) * jnp.finfo(weight.dtype).eps * values[0]
    V = drawn.at[:, :pairs].set(jnp.where(carries, left[:, :pairs] * roots, drawn[:, :pairs]))
    U = jnp.where(carries[:, None], right[:pairs] * roots[:, None], 0.0)
    return Components(V=V, U=jnp.pad(U, ((0, C - pairs), (0, 0))))
