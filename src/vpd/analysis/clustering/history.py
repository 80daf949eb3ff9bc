"""The way from subcomponents to one group, and where on it to stop."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class History:
    """All merges of one clustering of n subcomponents, the first one first.

    Attributes:
        pairs: the two merged groups, each by its smallest subcomponent; the union has the first of them.
        costs: the change of description length of each merge, in bits per position.
        initial: description length with every subcomponent alone, in bits per position.
    """

    pairs: Int[np.ndarray, "merges 2"]
    costs: Float[np.ndarray, " merges"]
    initial: float

    @property
    def n(self) -> int:
        """Number of subcomponents."""
        return len(self.costs) + 1

    @cached_property
    def lengths(self) -> Float[np.ndarray, " n"]:
        """Description length after 0, 1, ... merges."""
        return self.initial + np.concatenate([[0.0], np.cumsum(self.costs)])

    @cached_property
    def cut(self) -> int:
        """After how many merges the description length is smallest: there the marginal cost crosses 0 from below.

        A history may cross it several times; of these it is the crossing with the smallest length, of equal ones the
        first.
        """
        return int(np.argmin(self.lengths))

    def groups(self, merges: int | None = None) -> Int[np.ndarray, " n"]:
        """The group of each subcomponent after some merges, by its smallest member; at the cut by default."""
        group = np.arange(self.n)
        # The last merge first, so that a group's name is followed to the one it ends with in one step.
        for a, b in self.pairs[: self.cut if merges is None else merges][::-1]:
            group[b] = group[a]
        return group

    def labels(self, merges: int | None = None) -> Int[np.ndarray, " n"]:
        """The cluster of each subcomponent after some merges, at the cut by default.

        Clusters are numbered from 0 by falling size, equal ones by their smallest member.
        """
        _, group, sizes = np.unique(self.groups(merges), return_inverse=True, return_counts=True)
        number = np.empty_like(sizes)
        number[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        return number[group]
