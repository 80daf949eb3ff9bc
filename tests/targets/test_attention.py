"""Causal attention with rotary positions: against NumPy, and what it must not depend on."""

import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal
from targets.numpy_attention import attention

from vpd.rotary import rotate
from vpd.targets.attention import causal_attention

T, D = 6, 8
attend = jit(causal_attention, static_argnums=3)
QKV = tuple(normal(2, T, D, key=i) for i in range(3))


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_against_numpy(n_heads: int) -> None:
    got = attend(*QKV, n_heads)
    arrays = (np.asarray(x, np.float64) for x in QKV)
    want = np.stack([attention(*one, n_heads) for one in zip(*arrays, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_later_position_changes_nothing_earlier(part: int) -> None:
    changed = [x.at[:, 3:].set(normal(2, T - 3, D, key=9)) if i == part else x for i, x in enumerate(QKV)]
    before, after = np.asarray(attend(*QKV, 2)), np.asarray(attend(*changed, 2))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(axis=(0, 2)) > 1e-3).all()


def test_scores_depend_on_the_distance_alone() -> None:
    """The same query and key at every position: a score is a function of how far they are apart."""
    q, k = (np.broadcast_to(np.asarray(normal(D, key=i)), (T, 1, D)) for i in (0, 1))
    scores = np.einsum("qhd,khd->qk", *(np.asarray(rotate(jnp.asarray(x[None]))[0]) for x in (q, k)))
    for distance in range(T):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], rtol=1e-4, atol=1e-5)
    assert np.ptp(scores[:, 0]) > 0.1
    np.testing.assert_allclose(rotate(jnp.asarray(q[None]))[0, 0], q[0], rtol=1e-6)  # the first position is not turned


def test_heads_are_consecutive_slices() -> None:
    """A value in the first half reaches the first half of the output alone, and the halves are heads of their own."""
    q, k, v = QKV
    both = attend(q, k, v, 2)
    np.testing.assert_array_equal(attend(q, k, v.at[..., D // 2 :].set(0.0), 2)[..., D // 2 :], 0.0)
    for half in (slice(0, D // 2), slice(D // 2, D)):
        alone = attend(q[..., half], k[..., half], v[..., half], 1)
        np.testing.assert_allclose(both[..., half], alone, rtol=1e-5, atol=1e-6)
