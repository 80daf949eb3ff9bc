"""Squashings as a pair, and the noise of binomial sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit

from vpd.decomposition import Site
from vpd.importance import SQUASHINGS, causal_importances, squash_pair

Z = jnp.asarray([-3.0, -0.5, 0.0, 0.3, 1.0, 1.5], jnp.float32)


def test_leaky_hard_is_a_pair() -> None:
    lower, upper = squash_pair("leaky_hard")
    np.testing.assert_allclose(lower(Z), [0, 0, 0, 0.3, 1, 1], atol=1e-7)
    np.testing.assert_allclose(upper(Z), [0, 0, 0, 0.3, 1, 1.005], atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(SQUASHINGS) - {"leaky_hard"}))
def test_other_types_serve_both(name: str) -> None:
    assert squash_pair(name) == (SQUASHINGS[name], SQUASHINGS[name])


@pytest.mark.parametrize(("g", "want"), [(1.0, [0, 0, 0, 1, 1, 0]), (-1.0, [-0.01, -0.01, -0.01, -1, -1, 0])])
def test_the_lower_one_leaks_only_what_raises(g: float, want: list[float]) -> None:
    (got,) = jax.vjp(squash_pair("leaky_hard")[0], Z)[1](jnp.full_like(Z, g))
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_nothing_else_crosses() -> None:
    z = {"a": Z[None], "b": Z[None] / 2}
    got = causal_importances(z, squash_pair("leaky_hard"))
    assert list(got.lower) == list(got.upper) == ["a", "b"]
    for site, x in z.items():
        np.testing.assert_array_equal(got.lower[site], squash_pair("leaky_hard")[0](x))
        np.testing.assert_array_equal(got.upper[site], squash_pair("leaky_hard")[1](x))


def test_binomial_noise_moves_the_lower_one_alone() -> None:
    z = {site: jnp.full((50, 8), 0.5, jnp.float32) for site in "ab"}

    @jit
    def run(z: dict, seed: jax.Array):
        sites = [Site(name, 2, 2, C=8) for name in z]
        return causal_importances(z, squash_pair("leaky_hard"), jax.random.key(seed), sites)

    got = run(z, np.int32(0))
    np.testing.assert_allclose(got.upper["a"], 0.5, atol=1e-7)
    u = {site: (1.05 * 0.5 - np.asarray(lower)) / 0.05 for site, lower in got.lower.items()}
    for x in u.values():
        assert x.min() > -1e-4 and x.max() < 1 + 1e-4
        np.testing.assert_allclose([x.mean(), x.std()], [0.5, 12**-0.5], rtol=0.1)
    assert abs(np.corrcoef(u["a"].ravel(), u["b"].ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(run(z, np.int32(0)).lower["a"], got.lower["a"])
    assert (np.asarray(run(z, np.int32(1)).lower["a"]) != got.lower["a"]).mean() > 0.9
