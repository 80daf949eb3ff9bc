"""Batches that are read on the host: what a program is given of them, and which step each is of."""

from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.data.feed import HostBatches, Reader, given_from, in_program, shape_given


class Counted:
    """Rows that say of which step they are."""

    def __init__(self) -> None:
        self.closed = 0

    def __getitem__(self, step: int) -> np.ndarray:
        return np.full((2, 3), step, np.int32)

    def between(self, first: int, end: int) -> "Counted":
        assert (first, end) == (0, 2)
        return self

    def from_step(self, step: int) -> Generator[np.ndarray]:
        try:
            while True:
                yield self[step]
                step += 1
        finally:
            self.closed += 1


def drawn(seed: object, step: jax.Array) -> jax.Array:
    return jnp.broadcast_to(step, (2, 3))


def test_a_reader_goes_on_from_its_step() -> None:
    rows = Counted()
    with Reader(HostBatches(rows, per_dispatch=3), 5) as reader:
        for n, expected in ((3, [5, 6, 7]), (1, [8, 8, 8]), (2, [9, 10, 10])):
            given = reader.take(n)
            assert given is not None and given.shape == (3, 2, 3) and given.dtype == jnp.int32
            assert np.asarray(given)[:, 0, 0].tolist() == expected  # filled up to what the program was compiled for
        with pytest.raises(AssertionError):
            reader.take(4)
        assert not rows.closed
    assert rows.closed == 1


def test_nothing_is_read_for_batches_made_on_the_device() -> None:
    with Reader(drawn, 5) as reader:
        assert reader.take(2) is None
    assert shape_given(drawn) is None and given_from(drawn, 0, 4) is None
    assert in_program(drawn, None, jnp.asarray(3))(0, jnp.asarray(9)).tolist() == [[9] * 3] * 2


def test_a_program_finds_the_batch_of_its_step() -> None:
    batches = HostBatches(Counted(), per_dispatch=4)
    assert shape_given(batches) == (4, 2, 3)
    given = given_from(batches, 7, 4)

    @jax.jit
    def run(given: jax.Array, first: jax.Array) -> jax.Array:
        draw = in_program(batches, given, first)
        return jax.lax.map(lambda i: draw(0, first + i)[0, 0], jnp.arange(4))

    assert run(given, jnp.asarray(7)).tolist() == [7, 8, 9, 10]
    assert np.asarray(batches(0, jnp.asarray(9))).tolist() == [[9] * 3] * 2  # outside of programs
    with pytest.raises(AssertionError, match="given to the program"):
        in_program(batches, None, jnp.asarray(7))
