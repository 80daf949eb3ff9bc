"""MLP causal-importance functions: a gate per subcomponent, an MLP per site, one MLP over all sites."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vpd.decomposition import Activation, Components, ComponentSet, Site, dense, site_inner
from vpd.importance.gates import gates

LayerwiseType = Literal["mlp", "vector_mlp", "shared_mlp"]
SiteInputs = Mapping[str, Activation]


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


def erf_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The exact GELU, ``x Φ(x)``."""
    return jax.nn.gelu(x, approximate=False)


class SiteMLP(eqx.Module):
    """The layers of one site. In a stack (``mlp``, ``vector_mlp``) every array has a leading axis C."""

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
        x = erf_gelu(x @ layer.W + layer.b)
    return x @ mlp.out.W + mlp.out.b


class LayerwiseMLP(eqx.Module):
    """A CI function of independent parts, one per site.

    ``mlp``: a gate per subcomponent on the scalar ``x @ V[:, c]`` (its gradient reaches V); ``vector_mlp``: an MLP per
    subcomponent on the site input; ``shared_mlp``: an MLP per site.
    """

    sites: dict[str, SiteMLP]
    fn_type: LayerwiseType = eqx.field(static=True)
    lookups: frozenset[str] = eqx.field(static=True, default=frozenset())

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``."""
        return {site: self._site(site, inputs[site], components[site]) for site in self.sites}

    def _site(self, site: str, x: Activation, components: Components) -> Float[Array, "..."]:
        lookup = site in self.lookups
        match self.fn_type:
            case "mlp":
                return _gates(self.sites[site], site_inner(x, components, "embedding" if lookup else "linear"))
            case "vector_mlp":
                return _vector(self.sites[site], read_site(x, components, lookup))
            case "shared_mlp":
                return site_mlp(self.sites[site], read_site(x, components, lookup) if lookup else x)


class GlobalMLP(eqx.Module):
    """One MLP on all site inputs concatenated, its output split per site; a lookup site contributes ``V[x]``."""

    mlp: SiteMLP
    order: tuple[str, ...] = eqx.field(static=True)
    C: tuple[int, ...] = eqx.field(static=True)
    lookups: frozenset[str] = eqx.field(static=True, default=frozenset())

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``."""
        parts = [read_site(inputs[s], components[s], s in self.lookups) for s in self.order]
        return split_sites(site_mlp(self.mlp, jnp.concatenate(parts, axis=-1)), self.order, self.C)


def read_site(x: Activation, components: Components, lookup: bool) -> Float[Array, "..."]:
    """What a CI function reads at a site: its input, for a lookup the row ``V[x]``."""
    return components.V[dense(x)] if lookup else dense(x)


def split_sites(z: Float[Array, "*leading out"], order: Sequence[str], C: Sequence[int]) -> dict[str, Array]:
    """Consecutive parts of the last axis, C wide each; what follows the last is padding."""
    ends = [sum(C[: i + 1]) for i in range(len(C))]
    return {site: z[..., end - width : end] for site, width, end in zip(order, C, ends, strict=True)}


def lookups_of(sites: Sequence[Site]) -> frozenset[str]:
    """Names of the sites whose input is an index; a CI function reads ``V[x]`` there."""
    return frozenset(site.name for site in sites if site.kind == "embedding")


def input_width(site: Site) -> int:
    """Width of what a CI function reads at a site: ``d_in``, or C of a lookup's ``V[x]``."""
    return site.C if site.kind == "embedding" else site.d_in


def init_layerwise_mlp(
    fn_type: LayerwiseType, sites: Sequence[Site], hidden_dims: Sequence[int], key: Key[Array, ""]
) -> LayerwiseMLP:
    """Fresh layerwise CI function; a site's draw depends on its position in ``sites`` alone.

    Args:
        fn_type: ``mlp``, ``vector_mlp`` or ``shared_mlp``.
        sites: the decomposed sites in numeric layer order.
        hidden_dims: widths of the hidden layers; at least one for ``mlp`` and ``vector_mlp``.
        key: random key.
    """
    if fn_type != "shared_mlp" and not hidden_dims:
        raise ValueError(f"the layerwise {fn_type} needs at least one hidden layer; set hidden_dims, e.g. [16]")
    networks: dict[str, SiteMLP] = {}
    for index, site in enumerate(sites):
        site_key = jax.random.fold_in(key, index)
        match fn_type:
            case "mlp":
                stack, widths = (site.C,), (1, *hidden_dims, 1)
            case "vector_mlp":
                stack, widths = (site.C,), (input_width(site), *hidden_dims, 1)
            case "shared_mlp":
                stack, widths = (), (input_width(site), *hidden_dims, site.C)
        networks[site.name] = SiteMLP(*init_layers(site_key, stack, widths))
    return LayerwiseMLP(sites=networks, fn_type=fn_type, lookups=lookups_of(sites))


def init_global_mlp(sites: Sequence[Site], hidden_dims: Sequence[int], key: Key[Array, ""]) -> GlobalMLP:
    """Fresh global CI function; inputs are concatenated in the order of ``sites``, which is recorded."""
    C = tuple(site.C for site in sites)
    widths = (sum(input_width(site) for site in sites), *hidden_dims, sum(C))
    mlp = SiteMLP(*init_layers(key, (), widths))
    return GlobalMLP(mlp=mlp, order=tuple(s.name for s in sites), C=C, lookups=lookups_of(sites))
