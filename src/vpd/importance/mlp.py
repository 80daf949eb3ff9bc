"""MLP causal-importance functions: a gate per subcomponent, an MLP per site, one MLP over all sites."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vpd.decomposition import (
    Activation,
    Components,
    ComponentSet,
    Factored,
    Site,
    dense,
    for_each,
    site_groups,
    site_inner,
    site_numbers,
    trained_product,
)
from vpd.importance.gates import gates, gelu_and_slope

LayerwiseType = Literal["mlp", "vector_mlp", "shared_mlp"]
SiteInputs = Mapping[str, Activation]
# A stack of so few layers is taken apart and put together layer by layer.
UNROLLED = 4


@runtime_checkable
class CIFunction(Protocol):
    """Maps clean site inputs to CI preactivations."""

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``."""
        ...


class Affine(eqx.Module):
    """``W [..., d_in, d_out]`` and ``b [..., d_out]``; leading axes are one network per subcomponent."""

    W: Float[Array, "*stack h_in h_out"]
    b: Float[Array, "*stack h_out"]


def init_affine(key: Key[Array, ""], shape: Sequence[int], gain: float) -> Affine:
    """``W [*stack, fan_in, fan_out]`` from N(0, gain/fan_in), zero biases."""
    *stack, fan_in, fan_out = shape
    W = jax.random.normal(key, tuple(shape)) * math.sqrt(gain / fan_in)
    return Affine(W=W, b=jnp.zeros((*stack, fan_out)))


def init_layers(key: Key[Array, ""], stack: Sequence[int], widths: Sequence[int]) -> tuple[tuple[Affine, ...], Affine]:
    """Hidden layers N(0, 2/fan_in), the output layer N(0, 1/fan_in), biases zero (method.md §3)."""
    keys = jax.random.split(key, len(widths) - 1)
    hidden = tuple(
        init_affine(k, (*stack, i, o), 2.0) for k, i, o in zip(keys[:-1], widths[:-2], widths[1:-1], strict=True)
    )
    return hidden, init_affine(keys[-1], (*stack, *widths[-2:]), 1.0)


@jax.custom_vjp
def erf_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The exact GELU, ``x Φ(x)``; its slope comes with it from the same exponential."""
    return _gelu(x)[0]


def _gelu(x: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    value, slope = gelu_and_slope(x.astype(jnp.float32))
    return value.astype(x.dtype), slope.astype(x.dtype)


erf_gelu.defvjp(_gelu, lambda slope, g: (g * slope,))


class SiteMLP(eqx.Module):
    """The layers of one site. With a network per subcomponent (``mlp``, ``vector_mlp``) every array has an axis C."""

    hidden: tuple[Affine, ...]
    out: Affine


def _stacked(layer: Affine, x: Float[Array, "*leading C h_in"]) -> Float[Array, "*leading C h_out"]:
    return jnp.einsum("...ci,cio->...co", x, layer.W) + layer.b


def _gates(mlp: SiteMLP, inner: Float[Array, "*leading C"]) -> Float[Array, "*leading C"]:
    """One tiny MLP per subcomponent on its scalar component activation (the SPD gate)."""
    first = mlp.hidden[0]
    if len(mlp.hidden) == 1:
        return gates(inner, first.W[:, 0, :], first.b, mlp.out.W[:, :, 0]) + mlp.out.b[:, 0]
    h = erf_gelu(inner[..., None] * first.W[:, 0, :] + first.b)
    return _after_first(mlp, h)


def _after_first(mlp: SiteMLP, h: Float[Array, "*leading C hidden"]) -> Float[Array, "*leading C"]:
    """The layers after the first of a stack of networks."""
    for layer in mlp.hidden[1:]:
        h = erf_gelu(_stacked(layer, h))
    return jnp.einsum("...ch,ch->...c", h, mlp.out.W[:, :, 0]) + mlp.out.b[:, 0]


def _vector(mlp: SiteMLP, x: Float[Array, "*leading d_in"]) -> Float[Array, "*leading C"]:
    """One MLP per subcomponent on the whole site input."""
    h = erf_gelu(jnp.einsum("...i,cih->...ch", x, mlp.hidden[0].W) + mlp.hidden[0].b)
    return _after_first(mlp, h)


def site_mlp(mlp: SiteMLP, x: Activation) -> Float[Array, "..."]:
    """One MLP whose last layer splits per subcomponent."""
    for layer in mlp.hidden:
        x = erf_gelu(affine(layer, x))
    return affine(mlp.out, x)


def affine(layer: Affine, x: Activation) -> Float[Array, "..."]:
    """``x @ W + b``."""
    return (x @ layer.W if isinstance(x, Factored) else trained_product(x, layer.W)) + layer.b


class LayerwiseMLP(eqx.Module):
    """A CI function of independent parts, one per site.

    ``mlp``: a gate per subcomponent on the scalar ``x @ V[:, c]`` (its gradient reaches V); ``vector_mlp``: an MLP per
    subcomponent on the site input; ``shared_mlp``: an MLP per site.
    """

    sites: dict[str, SiteMLP]
    fn_type: LayerwiseType = eqx.field(static=True)
    lookups: frozenset[str] = eqx.field(static=True, default=frozenset())
    stacks: frozenset[str] = eqx.field(static=True, default=frozenset())

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``; of a stack with its first axis."""
        z: dict[str, Float[Array, "..."]] = {}
        for site, mlp in self.sites.items():
            one = partial(self._site, site in self.lookups)
            one = jax.vmap(one) if site in self.stacks else one
            z[site] = one(mlp, inputs[site], components[site])
        return z

    def _site(self, lookup: bool, mlp: SiteMLP, x: Activation, components: Components) -> Float[Array, "..."]:
        match self.fn_type:
            case "mlp":
                return _gates(mlp, site_inner(x, components, "embedding" if lookup else "linear"))
            case "vector_mlp":
                return _vector(mlp, read_site(x, components, lookup))
            case "shared_mlp":
                return site_mlp(mlp, read_site(x, components, lookup) if lookup else x)


class GlobalMLP(eqx.Module):
    """One MLP on all site inputs concatenated, its output split per site; a lookup site contributes ``V[x]``."""

    mlp: SiteMLP
    sites: tuple[Site, ...] = eqx.field(static=True)

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``."""
        read = {s.name: read_site(inputs[s.name], components[s.name], s.kind == "embedding") for s in self.sites}
        return split_sites(site_mlp(self.mlp, joined_sites(read, self.sites)), self.sites)


def read_site(x: Activation, components: Components, lookup: bool) -> Float[Array, "..."]:
    """What a CI function reads at a site: its input, for a lookup the row ``V[x]``."""
    return components.V[dense(x)] if lookup else dense(x)


def joined_sites(x: Mapping[str, Float[Array, "..."]], sites: Sequence[Site]) -> Float[Array, "*leading width"]:
    """What is read at the sites side by side, matrix by matrix in numeric layer order."""
    parts: list[Float[Array, "..."]] = []
    for group in site_groups(sites):
        together = jnp.concatenate([x[site.name] for site in group], axis=-1)
        if group[0].span is not None:
            together = jnp.moveaxis(together, 0, -2)
            together = together.reshape(*together.shape[:-2], -1)
        parts.append(together)
    return jnp.concatenate(parts, axis=-1)


def split_sites(z: Float[Array, "*leading out"], sites: Sequence[Site]) -> dict[str, Array]:
    """The last axis cut into the sites' subcomponents, matrix by matrix in numeric layer order; the rest is padding."""
    found: dict[str, Array] = {}
    groups = site_groups(sites)
    widths = [group[0].depth * sum(site.C for site in group) for group in groups]
    parts = jnp.split(z, list(accumulate(widths)), axis=-1)
    for group, part in zip(groups, parts[:-1], strict=True):
        found |= _split_group(part, group)
    return found


def _split_group(z: Float[Array, "*leading out"], group: Sequence[Site]) -> dict[str, Array]:
    """The parts of the sites of one group; a split, not slices, whose gradient would be sums of padded arrays."""
    ends, depth = list(accumulate(site.C for site in group)), group[0].depth
    if group[0].span is None:
        return {group[0].name: z}
    if depth <= UNROLLED:
        singles = [jnp.split(layer, ends[:-1], axis=-1) for layer in jnp.split(z, depth, axis=-1)]
        return {site.name: jnp.stack([layer[i] for layer in singles]) for i, site in enumerate(group)}
    stack = jnp.moveaxis(z.reshape(*z.shape[:-1], depth, ends[-1]), -2, 0)
    return {site.name: part for site, part in zip(group, jnp.split(stack, ends[:-1], axis=-1), strict=True)}


def lookups_of(sites: Sequence[Site]) -> frozenset[str]:
    """Names of the sites whose input is an index; a CI function reads ``V[x]`` there."""
    return frozenset(site.name for site in sites if site.kind == "embedding")


def input_width(site: Site) -> int:
    """Width of what a CI function reads at a site: ``d_in``, or C of a lookup's ``V[x]``."""
    return site.C if site.kind == "embedding" else site.d_in


def init_layerwise_mlp(
    fn_type: LayerwiseType, sites: Sequence[Site], hidden_dims: Sequence[int], key: Key[Array, ""]
) -> LayerwiseMLP:
    """Fresh layerwise CI function; a matrix's draw depends on its number among all of ``sites`` alone.

    Args:
        fn_type: ``mlp``, ``vector_mlp`` or ``shared_mlp``.
        sites: the decomposed sites in numeric layer order.
        hidden_dims: widths of the hidden layers; at least one for ``mlp`` and ``vector_mlp``.
        key: random key.
    """
    if fn_type != "shared_mlp" and not hidden_dims:
        raise ValueError(f"the layerwise {fn_type} needs at least one hidden layer; set hidden_dims, e.g. [16]")
    numbers = site_numbers(sites)

    def fresh(site: Site, number: int | Int[Array, ""]) -> SiteMLP:
        match fn_type:
            case "mlp":
                stack, widths = (site.C,), (1, *hidden_dims, 1)
            case "vector_mlp":
                stack, widths = (site.C,), (input_width(site), *hidden_dims, 1)
            case "shared_mlp":
                stack, widths = (), (input_width(site), *hidden_dims, site.C)
        return SiteMLP(*init_layers(jax.random.fold_in(key, number), stack, widths))

    networks = {site.name: for_each(site, numbers, partial(fresh, site)) for site in sites}
    stacks = frozenset(site.name for site in sites if site.span is not None)
    return LayerwiseMLP(sites=networks, fn_type=fn_type, lookups=lookups_of(sites), stacks=stacks)


def init_global_mlp(sites: Sequence[Site], hidden_dims: Sequence[int], key: Key[Array, ""]) -> GlobalMLP:
    """Fresh global CI function; inputs are concatenated in the order of ``sites``, which is recorded."""
    widths = (sum(s.depth * input_width(s) for s in sites), *hidden_dims, sum(s.depth * s.C for s in sites))
    return GlobalMLP(SiteMLP(*init_layers(key, (), widths)), tuple(sites))
