"""Where a matrix lies in a network, read from its path."""

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(.*?\.(\d+))\.(.+)")
OUTSIDE = "outside the layers"


def layer_of(site: str) -> str:
    """The path of the layer that a matrix lies in."""
    found = _LAYER.match(site)
    return found[1] if found else OUTSIDE


def place_of(site: str) -> tuple[str, int | None]:
    """What a matrix is in its layer, and the layer's number; outside of layers its own name."""
    found = _LAYER.match(site)
    return (found[3], int(found[2])) if found else (site, None)


def by_kind(sites: Iterable[str]) -> dict[str, list[str]]:
    """Matrices that are the same in every layer together, in the order of the network."""
    kinds: dict[str, list[str]] = {}
    for site in sites:
        kinds.setdefault(place_of(site)[0], []).append(site)
    return kinds
