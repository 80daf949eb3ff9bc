"""Shapes of sources, and masks from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import uniform

from vpd.decomposition import interpolate, source_shape, spread

CASES = [
    ("c", (6,), None, (1, 8)),
    ("nsc", (6,), 3, (3, 8)),
    ("bc", (6,), None, (6, 8)),
    ("c", (6, 4), None, (1, 1, 8)),
    ("sc", (6, 4), None, (1, 4, 8)),
    ("nsc", (6, 4), 2, (2, 4, 8)),
    ("bc", (6, 4), None, (6, 1, 8)),
    ("bsc", (6, 4), None, (6, 4, 8)),
]


@pytest.mark.parametrize(("scope", "leading", "n", "want"), CASES)
def test_shapes(scope: str, leading: tuple[int, ...], n: int | None, want: tuple[int, ...]) -> None:
    assert source_shape(scope, leading, 8, n) == want
    source = uniform(*want)
    mask = jax.eval_shape(lambda s, ci: interpolate(ci, spread(s, leading[0])), source, uniform(*leading, 7))
    assert mask.component.shape == (*leading, 7)
    assert np.broadcast_shapes(mask.delta.shape, leading) == leading


@pytest.mark.parametrize("scope", ["sc", "bsc"])
def test_positions_need_a_sequence(scope: str) -> None:
    with pytest.raises(ValueError, match="needs a sequence axis"):
        source_shape(scope, (6,), 8)


@pytest.mark.parametrize("n", [4, 7, None])
def test_n_divides_the_batch(n: int | None) -> None:
    with pytest.raises(ValueError, match="must divide the batch size 6"):
        source_shape("nsc", (6,), 8, n)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("rest", [(), (5,)])
def test_element_b_uses_source_b_mod_n(n: int, rest: tuple[int, ...]) -> None:
    source = uniform(n, *rest, 4)
    got = np.broadcast_to(spread(source, 6), (6, *rest, 4))
    for b in range(6):
        np.testing.assert_array_equal(got[b], source[b % n])


def test_the_last_channel_is_the_delta_mask_and_mixes_with_no_importance() -> None:
    ci, source = jnp.asarray([[0.0, 0.25, 1.0]]), jnp.asarray([[0.5, 0.5, 0.5, 0.3]])
    mask = interpolate(ci, source)
    np.testing.assert_allclose(mask.component, [[0.5, 0.625, 1.0]])
    np.testing.assert_allclose(mask.delta, [0.3])
    without = interpolate(ci, source[:, :3])
    assert without.delta is None
    np.testing.assert_array_equal(without.component, mask.component)
