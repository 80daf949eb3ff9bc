"""The decomposed weights: components, masks, routing, and the masked site."""

from vpd.decomposition.components import Components, ComponentSet, Site, init_components
from vpd.decomposition.factored import Activation, Factored, dense
from vpd.decomposition.masks import SiteMask, interpolate, source_shape, spread
from vpd.decomposition.routing import AllRouting, Routing, StaticProbability, UniformKSubset, draw_routing
from vpd.decomposition.site import masked_site, site_delta, site_frozen, site_inner

__all__ = [
    "Activation",
    "AllRouting",
    "ComponentSet",
    "Components",
    "Factored",
    "Routing",
    "Site",
    "SiteMask",
    "StaticProbability",
    "UniformKSubset",
    "dense",
    "draw_routing",
    "init_components",
    "interpolate",
    "masked_site",
    "site_delta",
    "site_frozen",
    "site_inner",
    "source_shape",
    "spread",
]
