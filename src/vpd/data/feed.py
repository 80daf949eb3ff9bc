"""Batches of one stream, made on the device from (seed, step) or read on the host ahead of it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Shaped

from vpd.placement import along_batch
from vpd.randomness import Seed

Draw = Callable[[Seed, Int[Array, ""]], Shaped[Array, "..."]]
# What the host hands to a program: batches [n, B, T] that were read, or nothing where they are made on the device.
Given = Int32[Array, "n B T"] | None


@runtime_checkable
class Rows(Protocol):
    """``rows[step]`` is the batch of a step."""

    def __getitem__(self, step: int) -> Int32[np.ndarray, "B T"]:
        """Token ids of one step."""
        ...

    def from_step(self, step: int) -> Generator[Int32[np.ndarray, "B T"]]:
        """The batches of this step and those that follow, read ahead until it is closed."""
        ...

    def between(self, first: int, end: int) -> "Rows":
        """The same batches, of each of which only these rows are read."""
        ...


@dataclass(frozen=True)
class HostBatches:
    """Token batches that are read on the host.

    Attributes:
        rows: of each step.
        per_dispatch: batches that one call of a program is given.
        own: the rows of a training batch that this process reads; None reads all of them.
    """

    rows: Rows
    per_dispatch: int = 1
    own: tuple[int, int] | None = None

    def __call__(self, seed: Seed, step: Int[Array, ""] | int) -> Int32[Array, "B T"]:
        """One batch, outside of programs; the seed is that of the rows."""
        return jnp.asarray(self.rows[int(step)])


Batches = Draw | HostBatches


def in_program(batches: Batches, given: Given, first: Int[Array, ""]) -> Draw:
    """The batch of (seed, step) inside a program that was given the batches from step ``first`` on."""
    if not isinstance(batches, HostBatches):
        return lambda seed, step: along_batch(batches(seed, step))
    assert given is not None, "batches that are read on the host must be given to the program"
    return lambda seed, step: along_batch(given[step - first])


def given_from(batches: Batches, first: int, n: int) -> Given:
    """What a program needs from the host for ``n`` batches from step ``first`` on."""
    if not isinstance(batches, HostBatches):
        return None
    return jnp.asarray(np.stack([batches.rows[first + i] for i in range(n)]))


class Reader:
    """Reads the batches of a training run ahead of its steps."""

    def __init__(self, batches: Batches, first: int) -> None:
        """Begin at step ``first``."""
        self._batches = batches
        self._rows: Generator[Int32[np.ndarray, "B T"]] | None = None
        if isinstance(batches, HostBatches):
            rows = batches.rows if batches.own is None else batches.rows.between(*batches.own)
            self._rows = rows.from_step(first)

    def take(self, n: int) -> Given:
        """The next ``n`` batches, or this process's rows of them, filled up to what a program is given."""
        if self._rows is None:
            return None
        assert isinstance(self._batches, HostBatches) and n <= self._batches.per_dispatch
        taken = [next(self._rows) for _ in range(n)]
        taken += [taken[-1]] * (self._batches.per_dispatch - n)
        return jnp.asarray(np.stack(taken))

    def close(self) -> None:
        """Stop reading."""
        if self._rows is not None:
            self._rows.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shape_given(batches: Batches) -> tuple[int, ...] | None:
    """Shape of what a training program is given."""
    if not isinstance(batches, HostBatches):
        return None
    return (batches.per_dispatch, *batches.rows[0].shape)
