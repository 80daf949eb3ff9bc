"""Names of single subcomponents, ``SITE:INDEX``, and their order along one axis over all sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate

import numpy as np
from jaxtyping import Shaped

from vpd.errors import RunError

# So many sites are all named where another one is asked for.
SHOWN = 12


@dataclass(frozen=True, order=True)
class Subcomponent:
    """One rank-one piece of one matrix."""

    site: str
    index: int

    def __str__(self) -> str:
        return f"{self.site}:{self.index}"


@dataclass(frozen=True)
class FlatAxis:
    """All subcomponents in a row: those of the first site, of the second, and so on.

    Attributes:
        sizes: C of each site, in numeric layer order.
    """

    sizes: Mapping[str, int]

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where each site begins."""
        return dict(zip(self.sizes, [0, *accumulate(self.sizes.values())][:-1], strict=True))

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def place(self, one: Subcomponent) -> int:
        """The position of a subcomponent."""
        return self.starts[one.site] + one.index

    def at(self, place: int) -> Subcomponent:
        """The subcomponent at a position."""
        site = next(site for site in reversed(self.starts) if self.starts[site] <= place)
        return Subcomponent(site, place - self.starts[site])

    def of(self, site: str) -> slice:
        """The positions of a site's subcomponents."""
        return slice(self.starts[site], self.starts[site] + self.sizes[site])

    def joined(self, by_site: Mapping[str, Shaped[np.ndarray, "*leading _C"]]) -> Shaped[np.ndarray, "*leading n"]:
        """Arrays of every site side by side."""
        return np.concatenate([by_site[site] for site in self.sizes], axis=-1)

    def split(self, joined: Shaped[np.ndarray, "*leading n"]) -> dict[str, Shaped[np.ndarray, "*leading _C"]]:
        """What :meth:`joined` made, by site."""
        return {site: joined[..., self.of(site)] for site in self.sizes}


def parse_subcomponent(text: str, sizes: Mapping[str, int]) -> Subcomponent:
    """The subcomponent that ``SITE:INDEX`` names.

    Args:
        text: for example ``h.0.mlp.c_fc:12``.
        sizes: C of each site there is.

    Raises:
        RunError: another form, a site that is not decomposed, or an index beyond its C.
    """
    site, colon, index = text.rpartition(":")
    if not colon or not index.isdecimal():
        raise RunError(f"{text!r} names no subcomponent; write SITE:INDEX, as in {next(iter(sizes))}:0")
    refuse_other_sites([site], sizes)
    if int(index) >= sizes[site]:
        raise RunError(f"{text!r}: {site} has the subcomponents 0 to {sizes[site] - 1}")
    return Subcomponent(site, int(index))


def refuse_other_sites(named: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Refuse sites that are not decomposed.

    Raises:
        RunError: with the nearest ones there are.
    """
    for site in named:
        if site in sizes:
            continue
        if len(sizes) <= SHOWN:
            raise RunError(f"{site!r} is not a decomposed site; the sites are {', '.join(sizes)}")
        near = get_close_matches(site, sizes, n=3) or list(sizes)[:3]
        raise RunError(f"{site!r} is not one of the {len(sizes)} decomposed sites, such as {', '.join(near)}")
