"""Repeated random tokens: a start token, a run of distinct ones, and where they have been seen before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit

from vpd.data.build import sequence_batches
from vpd.data.induction import repeated_tokens, seen_before

draw = jit(repeated_tokens, static_argnums=(1, 2, 3))


def period_of(row: np.ndarray) -> int:
    """The distance at which the sequence repeats itself, found by trying."""
    return next(p for p in range(1, len(row)) if (row[p:] == row[:-p]).all())


@pytest.mark.parametrize(("vocab", "seq_len"), [(17, 32), (64, 32), (5, 8), (30, 21)])
def test_a_run_of_distinct_tokens_repeats(vocab: int, seq_len: int) -> None:
    tokens = np.asarray(draw(jax.random.key(0), 256, vocab, seq_len))
    assert tokens.shape == (256, seq_len) and tokens.dtype == np.int32
    assert (tokens[:, 0] == 0).all() and (tokens[:, 1:] > 0).all() and (tokens < vocab).all()
    periods = [period_of(row[1:]) for row in tokens]
    assert set(periods) == set(range(seq_len // 4, seq_len // 2 + 1))
    for row, period in zip(tokens, periods, strict=True):
        assert len(set(row[1 : 1 + period])) == period
    # A period is as frequent as another, and so is a token.
    share = np.bincount(periods)[seq_len // 4 :] / 256
    assert np.abs(share - 1 / len(share)).max() < 5 * (1 / len(share) / 256) ** 0.5
    first = np.bincount(tokens[:, 1], minlength=vocab)[1:] / 256
    assert np.abs(first - 1 / (vocab - 1)).max() < 5 * (1 / (vocab - 1) / 256) ** 0.5


def test_a_batch_is_a_function_of_seed_step_and_stream() -> None:
    train, other = (jit(sequence_batches(12, 16, 4, name)) for name in ("train", "eval"))
    batch = train(jnp.uint32(0), jnp.int32(3))
    np.testing.assert_array_equal(batch, train(jnp.uint32(0), jnp.int32(3)))
    for one in (
        train(jnp.uint32(1), jnp.int32(3)),
        train(jnp.uint32(0), jnp.int32(4)),
        other(jnp.uint32(0), jnp.int32(3)),
    ):
        assert (np.asarray(one)[:, 1:] != np.asarray(batch)[:, 1:]).mean() > 0.5


def test_seen_before_against_a_loop() -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (20, 13)).astype(np.int32)
    want = [[row[t] in row[:t] for t in range(13)] for row in tokens.tolist()]
    np.testing.assert_array_equal(jit(seen_before)(jnp.asarray(tokens)), want)


def test_where_it_was_seen_before_the_next_token_is_known() -> None:
    """It is the one that followed then; that is what induction heads copy."""
    tokens = draw(jax.random.key(1), 64, 20, 32)
    seen, rows = np.asarray(seen_before(tokens)), np.asarray(tokens).tolist()
    assert seen[:, 17:].all() and not seen[:, :9].any()
    for row, marks in zip(rows, seen, strict=True):
        for t in np.flatnonzero(marks[:-1]):
            assert row[t + 1] == row[row.index(row[t]) + 1]
