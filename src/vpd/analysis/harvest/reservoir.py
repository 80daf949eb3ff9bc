"""A few windows of every subcomponent, the same ones whoever reads which batch in whatever order.

Each candidate has a key that is a function of the seed, the row and position in the stream, and the subcomponent, or of
its activation: those with the smallest keys are kept, and the smallest of a union are the smallest of the smallest.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64

_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Windows:
    """Windows of several subcomponents, side by side.

    Attributes:
        owner: which subcomponent, ``[m]``.
        key: small ones are kept.
        row: in the stream.
        position: in the row, where the subcomponent fires.
        start: position of the window's first entry.
        inputs: tokens ``[m, W]``, or the whole example ``[m, width]`` where the inputs are no tokens.
        importances: ``[m, W]``.
        activations: ``[m, W]``.
    """

    owner: Int[np.ndarray, " m"]
    key: Shaped[np.ndarray, " m"]
    row: Int[np.ndarray, " m"]
    position: Int[np.ndarray, " m"]
    start: Int[np.ndarray, " m"]
    inputs: Shaped[np.ndarray, "m _width"]
    importances: Float[np.ndarray, "m W"]
    activations: Float[np.ndarray, "m W"]

    def __len__(self) -> int:
        return len(self.owner)

    def chosen(self, which: Shaped[np.ndarray, " _k"]) -> "Windows":
        """Some of them."""
        return Windows(*(getattr(self, f.name)[which] for f in fields(self)))

    def joined(self, other: "Windows") -> "Windows":
        """These and others."""
        return Windows(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def save(self, path: Path) -> None:
        """For :func:`load_windows`."""
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})


def load_windows(path: Path) -> Windows:
    """What :meth:`Windows.save` wrote."""
    with np.load(path) as stored:
        return Windows(*(stored[f.name] for f in fields(Windows)))


def no_windows(length: int, inputs: Shaped[np.ndarray, "0 _width"], key: type[np.generic]) -> Windows:
    """None, of windows of so many positions."""
    whole = np.zeros(0, np.int64)
    values = np.zeros((0, length), np.float32)
    return Windows(whole, np.zeros(0, key), whole, whole, whole, inputs, values, values)


def smallest(
    k: int,
    owner: Int[np.ndarray, " m"],
    key: Shaped[np.ndarray, " m"],
    row: Int[np.ndarray, " m"],
    position: Int[np.ndarray, " m"],
) -> Int[np.ndarray, " _kept"]:
    """Which have the k smallest keys of their subcomponent, in order; of equal ones the first in the stream."""
    order = np.lexsort((position, row, key, owner))
    sorted_owner = owner[order]
    first = np.searchsorted(sorted_owner, sorted_owner, "left")
    return order[np.arange(len(order)) - first < k]


def priorities(
    seed: int, row: Int[np.ndarray, " N"], position: Int[np.ndarray, " N"], length: int
) -> UInt64[np.ndarray, " N"]:
    """Sixty-four random bits of each position of the stream."""
    place = row.astype(np.uint64) * np.uint64(length) + position.astype(np.uint64)
    return _mixed(place + _mixed(np.asarray([seed], np.uint64)))


def draw(of_position: UInt64[np.ndarray, " m"], owner: Int[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """Sixty-four random bits of each position and subcomponent."""
    return _mixed(of_position + (owner.astype(np.uint64) + np.uint64(1)) * _STEP)


def _mixed(x: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Candidates:
    """Places that may be kept, before their windows are cut.

    Attributes:
        owner: which subcomponent.
        key: small ones are kept.
        example: number within the batch.
        position: within the row.
    """

    owner: Int[np.ndarray, " m"]
    key: Shaped[np.ndarray, " m"]
    example: Int[np.ndarray, " m"]
    position: Int[np.ndarray, " m"]

    def chosen(self, which: Shaped[np.ndarray, " _k"]) -> "Candidates":
        """Some of them."""
        return Candidates(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True)
class Batch:
    """A batch as windows are cut from it.

    Attributes:
        first: number of its first row in the stream.
        inputs: tokens ``[rows, T]``, or examples ``[rows, width]``.
        importances: ``[rows, T, n]``.
        activations: ``[rows, T, n]``.
    """

    first: int
    inputs: Shaped[np.ndarray, "rows _width"]
    importances: Float[np.ndarray, "rows T n"]
    activations: Float[np.ndarray, "rows T n"]


class Reservoir:
    """The windows with the k smallest keys of every subcomponent."""

    def __init__(self, n: int, k: int, context: int, has_tokens: bool, empty: Windows) -> None:
        """Empty.

        Args:
            n: number of subcomponents.
            k: how many windows each may have.
            context: positions on each side.
            has_tokens: whether a window's inputs are cut along the row; whole examples are kept otherwise.
            empty: windows of the right shapes and types.
        """
        self._n, self._k, self._context, self._has_tokens = n, k, context, has_tokens
        self.windows = empty
        self._set_limits()

    def _set_limits(self) -> None:
        """The largest key that each subcomponent still takes."""
        kinds = self.windows.key.dtype
        highest = np.iinfo(kinds).max if kinds.kind == "u" else np.finfo(kinds).max
        self._limit = np.full(self._n, highest, kinds)
        counts = np.bincount(self.windows.owner, minlength=self._n)
        full = np.flatnonzero(counts >= self._k) if self._k else np.arange(0)
        # They are in order of subcomponent and key.
        self._limit[full] = self.windows.key[np.cumsum(counts)[full] - 1]

    def promising(self, owner: Int[np.ndarray, " m"], key: Shaped[np.ndarray, " m"]) -> Int[np.ndarray, " _k"]:
        """Which candidates could be kept."""
        return np.flatnonzero(key <= self._limit[owner])

    def add(self, found: Candidates, batch: Batch) -> None:
        """Candidates of a batch."""
        if not self._k or not len(found.owner):
            return
        found = found.chosen(smallest(self._k, found.owner, found.key, found.example, found.position))
        old = self.windows
        owner = np.concatenate([old.owner, found.owner])
        key = np.concatenate([old.key, found.key.astype(old.key.dtype)])
        row = np.concatenate([old.row, batch.first + found.example])
        position = np.concatenate([old.position, found.position])
        kept = smallest(self._k, owner, key, row, position)
        new = np.sort(kept[kept >= len(old)]) - len(old)
        fresh = self._cut(found.chosen(new), batch)
        # The new ones follow the old ones without those that were not kept.
        where = np.full(len(owner), -1)
        where[: len(old)] = np.arange(len(old))
        where[len(old) + new] = len(old) + np.arange(len(new))
        self.windows = old.joined(fresh).chosen(where[kept])
        self._set_limits()

    def _cut(self, found: Candidates, batch: Batch) -> Windows:
        T, W = batch.importances.shape[1], self.windows.importances.shape[1]
        start = np.clip(found.position - self._context, 0, T - W)
        along = start[:, None] + np.arange(W)
        rows, owners = found.example[:, None], found.owner[:, None]
        inputs = batch.inputs[rows, along] if self._has_tokens else batch.inputs[found.example]
        return Windows(
            found.owner.astype(np.int64),
            found.key.astype(self.windows.key.dtype),
            batch.first + found.example.astype(np.int64),
            found.position.astype(np.int64),
            start.astype(np.int64),
            inputs.astype(self.windows.inputs.dtype),
            batch.importances[rows, along, owners],
            batch.activations[rows, along, owners],
        )

    def put(self, windows: Windows) -> None:
        """Add windows of another reservoir, or those that were saved."""
        both = self.windows.joined(windows)
        self.windows = both.chosen(smallest(self._k, both.owner, both.key, both.row, both.position))
        self._set_limits()
