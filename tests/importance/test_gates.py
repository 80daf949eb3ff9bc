"""The chunked gates against the plain formula, in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal

from vpd.importance.gates import CHUNK, gates


def plain(a: jax.Array, w_in: jax.Array, b_in: jax.Array, w_out: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.gelu(a[..., None] * w_in + b_in, approximate=False) * w_out, axis=-1)


@jit
def both(arguments: tuple, g: jax.Array) -> tuple:
    results = []
    for f in (gates, plain):
        z, pull = jax.vjp(f, *arguments)
        results.append((z, *pull(g)))
    return tuple(results)


@pytest.mark.parametrize("leading", [(1,), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (300,), (7, 43)])
def test_value_and_gradients(leading: tuple[int, ...]) -> None:
    C, hidden = 3, 4
    a = normal(*leading, C) * 2
    got, want = both((a, normal(C, hidden), normal(C, hidden, key=1), normal(C, hidden, key=2)), normal(*leading, C))
    assert got[0].shape == a.shape
    for name, x, y in zip(("z", "a", "w_in", "b_in", "w_out"), got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5 * np.abs(y).max(), err_msg=name)
