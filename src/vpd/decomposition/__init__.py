"""The decomposed weights: components, masks, routing, and the masked site."""

from vpd.decomposition.components import Components, ComponentSet, init_components
from vpd.decomposition.factored import Activation, Factored, dense
from vpd.decomposition.masks import Interpolated, Mask, SiteMask, interpolate, source_shape, spread
from vpd.decomposition.products import trained_product
from vpd.decomposition.routing import AllRouting, Routing, StaticProbability, UniformKSubset, draw_routing
from vpd.decomposition.site import masked_site, site_delta, site_frozen, site_inner
from vpd.decomposition.stacks import (
    Site,
    SiteKind,
    Span,
    for_each,
    members_in_order,
    site_groups,
    site_numbers,
    unstacked,
)

__all__ = [
    "Activation",
    "AllRouting",
    "ComponentSet",
    "Components",
    "Factored",
    "Interpolated",
    "Mask",
    "Routing",
    "Site",
    "SiteKind",
    "SiteMask",
    "Span",
    "StaticProbability",
    "UniformKSubset",
    "dense",
    "draw_routing",
    "for_each",
    "init_components",
    "interpolate",
    "masked_site",
    "members_in_order",
    "site_delta",
    "site_frozen",
    "site_groups",
    "site_inner",
    "site_numbers",
    "source_shape",
    "spread",
    "trained_product",
    "unstacked",
]
