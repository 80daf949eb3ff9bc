"""The GELU and its slope from one exponential against scipy in float64, and gates on other dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
from objective.scenes import normal
from scipy.special import ndtr

from vpd.importance.gates import gates, gelu_and_slope


def exact(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u = u.astype(np.float64)
    return u * ndtr(u), ndtr(u) + u * np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)


def test_accuracy() -> None:
    u = np.linspace(-12, 12, 400_001).astype(np.float32)
    value, slope = jax.jit(gelu_and_slope)(u)
    want_value, want_slope = exact(u)
    # Half a unit in the last place of a value near 12 is 5e-7.
    np.testing.assert_allclose(value, want_value, atol=2e-7, rtol=2e-7)
    np.testing.assert_allclose(slope, want_slope, atol=2e-7, rtol=2e-7)


def test_far_out() -> None:
    u = np.asarray([-3e38, -1e20, -1e3, -40, -0.0, 0.0, 40, 1e3, 1e20, 3e38], np.float32)
    value, slope = jax.jit(gelu_and_slope)(u)
    np.testing.assert_array_equal(value, np.where(u > 0, u, 0))
    np.testing.assert_array_equal(slope[u != 0], np.where(u > 0, 1, 0)[u != 0])
    np.testing.assert_allclose(slope[u == 0], 0.5, atol=1e-7)


def test_bfloat16_is_computed_in_float32() -> None:
    arguments = [normal(50, 3) * 2, *(normal(3, 4, key=key) for key in range(3))]
    rounded = [x.astype(jnp.bfloat16) for x in arguments]
    g = normal(50, 3, key=5).astype(jnp.bfloat16)

    @jax.jit
    def both(rounded: list[jax.Array], g: jax.Array):
        z, pull = jax.vjp(gates, *rounded)
        exact_z, exact_pull = jax.vjp(gates, *(x.astype(jnp.float32) for x in rounded))
        return (z, *pull(g)), (exact_z, *exact_pull(g.astype(jnp.float32)))

    got, want = both(rounded, g)
    for x, y in zip(got, want, strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, y.astype(jnp.bfloat16))
