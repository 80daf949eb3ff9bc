"""V and U of every site, who shares them with whom, and how they start."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vpd.decomposition.stacks import Site, for_each, site_numbers


class Components(eqx.Module):
    """The rank-one pieces of one site: subcomponent c is ``V[:, c] ⊗ U[c, :]``; of a stack along its first axis."""

    V: Float[Array, "*stack d_in C"]
    U: Float[Array, "*stack C d_out"]

    @property
    def transposed(self) -> "Components":
        """The same pieces for the transposed weight: ``V' = Uᵀ``, ``U' = Vᵀ``."""
        return Components(V=self.U.mT, U=self.V.mT)


class ComponentSet(eqx.Module):
    """Components of all sites, looked up by site name.

    A tied site owns no arrays: it is a transposed view of its owner, so that gradients of both uses are summed and one
    update is made (method.md §9). A stack owns its matrices' arrays together; each is a view of them.

    Attributes:
        owned: pieces of the sites that own arrays.
        ties: pairs (tied site, its owner).
        members: of each stack, (its name, the paths of its matrices).
    """

    owned: dict[str, Components]
    ties: tuple[tuple[str, str], ...] = eqx.field(static=True, default=())
    members: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True, default=())

    def __getitem__(self, site: str) -> Components:
        """Components of one site, V ``[d_in, C]`` and U ``[C, d_out]``; of a stack with its first axis.

        Raises:
            KeyError: a name that is neither a site nor a matrix of a stack.
        """
        if site in self.owned:
            return self.owned[site]
        owner = dict(self.ties).get(site)
        if owner is not None:
            return self.owned[owner].transposed
        for stack, names in self.members:
            if site in names:
                i = names.index(site)
                return Components(self.owned[stack].V[i], self.owned[stack].U[i])
        raise KeyError(site)

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
        key: random key; a matrix's draw depends on its number among all of ``sites`` alone.
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
    numbers = site_numbers(sites)
    for site in sites:
        if site.name in view_of:
            continue
        drawn = tied_to.get(site.name, site)
        if weights is not None:
            eye = jnp.broadcast_to(jnp.eye(site.d_in), (*site.stack, site.d_in, site.d_in))
            W = eye if site.kind == "identity" else weights[site.name]
            owned[site.name] = _from_weights(site, W, for_each(site, numbers, partial(_key_of_V, key)))
            continue
        pieces = for_each(site, numbers, partial(_normal_pieces, drawn, key))
        owned[site.name] = pieces.transposed if site.name in tied_to else pieces
    members = tuple((site.name, site.members) for site in sites if site.span is not None)
    return ComponentSet(owned=owned, ties=tuple(view_of.items()), members=members)


def _key_of_V(key: Key[Array, ""], number: int | Int[Array, ""]) -> Key[Array, ""]:
    return jax.random.split(jax.random.fold_in(key, number))[0]


def _normal_pieces(site: Site, key: Key[Array, ""], number: int | Int[Array, ""]) -> Components:
    key_v, key_u = jax.random.split(jax.random.fold_in(key, number))
    V = jax.random.normal(key_v, (site.d_in, site.C)) / math.sqrt(site.d_in)
    return Components(V=V, U=jax.random.normal(key_u, (site.C, site.d_out)) / math.sqrt(site.C))


def _from_weights(site: Site, W: Float[Array, "*stack d_in d_out"], key: Key[Array, "*stack"]) -> Components:
    pairs = partial(singular_pairs, C=site.C)
    if site.span is None:
        return pairs(W, key=key)
    return jax.vmap(lambda w, k: pairs(w, key=k))(W, key)


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
