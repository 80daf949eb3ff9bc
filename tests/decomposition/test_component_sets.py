"""How components start, and what tying two sites means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal, tms, uniform

from vpd.decomposition import Components, ComponentSet, Site, SiteMask, init_components
from vpd.decomposition.components import singular_pairs
from vpd.objective import faithfulness_loss
from vpd.targets import masked_forward

PAIR = (Site("linear1", 5, 2, C=7), Site("linear2", 2, 5, C=7))
TIE = (("linear1", "linear2"),)


SITES = (Site("a", 50, 40, C=60), Site("b", 60, 50, C=40), Site("c", 40, 40, C=60))


@pytest.fixture(scope="module")
def fresh() -> tuple[ComponentSet, ComponentSet]:
    """Of all sites, and of the first alone."""
    return jit(lambda key: (init_components(SITES, key), init_components(SITES[:1], key)))(jax.random.key(0))


def test_shapes_and_standard_deviations(fresh) -> None:
    for site in SITES:
        c = fresh[0][site.name]
        assert c.V.shape == (site.d_in, site.C) and c.U.shape == (site.C, site.d_out)
        assert c.V.dtype == c.U.dtype == jnp.float32
        for x, std in ((c.V, site.d_in**-0.5), (c.U, site.C**-0.5)):
            np.testing.assert_allclose(np.std(x), std, rtol=0.08)
            assert abs(np.mean(x)) < 4 * std / x.size**0.5


def test_later_sites_change_no_earlier_draw(fresh) -> None:
    np.testing.assert_array_equal(fresh[0]["a"].V, fresh[1]["a"].V)
    np.testing.assert_array_equal(fresh[0]["a"].U, fresh[1]["a"].U)


def test_sites_and_matrices_draw_independently(fresh) -> None:
    drawn = [np.ravel(x)[:1600] for site in "abc" for x in (fresh[0][site].V, fresh[0][site].U)]
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.12


def test_a_tied_site_is_the_transposed_view() -> None:
    tied = init_components(PAIR, jax.random.key(0), TIE)
    assert list(tied) == ["linear1", "linear2"] and list(tied.owned) == ["linear1"]
    np.testing.assert_array_equal(tied["linear2"].V, tied["linear1"].U.T)
    np.testing.assert_array_equal(tied["linear2"].U, tied["linear1"].V.T)
    assert len(jax.tree.leaves(tied)) == 2


def test_the_gradient_of_the_owner_is_the_sum_of_both_uses() -> None:
    target = tms(f=5, h=2)
    x = uniform(6, 5)
    tied = ComponentSet({"linear1": Components(normal(5, 7), normal(7, 2))}, (("linear2", "linear1"),))
    untied = ComponentSet({site: tied[site] for site in tied})
    masks = {s.name: SiteMask(uniform(6, 7, key=i), uniform(6)) for i, s in enumerate(PAIR)}

    @jit
    def value_and_gradient(components: ComponentSet):
        def loss(components: ComponentSet) -> jax.Array:
            return jnp.sum(jnp.square(masked_forward(target, components, x, masks) - x))

        return jax.value_and_grad(loss)(components)

    (value, one), (same, two) = value_and_gradient(tied), value_and_gradient(untied)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    assert list(one.owned) == ["linear1"]
    want = (two["linear1"].V + two["linear2"].U.T, two["linear1"].U + two["linear2"].V.T)
    np.testing.assert_allclose(one.owned["linear1"].V, want[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.owned["linear1"].U, want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [Site("linear2", 5, 2, C=7), Site("linear2", 2, 5, C=6)])
def test_what_does_not_fit_is_not_tied(other: Site) -> None:
    with pytest.raises(ValueError, match="transposed shapes and equal C"):
        init_components((PAIR[0], other), jax.random.key(0), TIE)


@pytest.mark.parametrize("C", [3, 7, 8, 20])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_singular_pairs_are_the_best_approximation(shape: tuple[int, int], C: int) -> None:
    """Eckart and Young: what is left are the other singular values, and nothing from the rank on."""
    W = normal(*shape)
    pieces = jit(singular_pairs, static_argnums=1)(W, C, jax.random.key(0))
    assert (pieces.V.shape, pieces.U.shape) == ((shape[0], C), (C, shape[1]))
    values = np.linalg.svd(np.asarray(W), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(W - pieces.V @ pieces.U), np.sqrt((values[C:] ** 2).sum()), atol=1e-5)
    sizes = np.linalg.norm(pieces.V, axis=0) * np.linalg.norm(pieces.U, axis=1)
    np.testing.assert_allclose(sizes[:7], values[:C], rtol=1e-4)
    np.testing.assert_allclose(sizes[7:], 0, atol=1e-7)


def test_beyond_the_rank_only_U_starts_at_0() -> None:
    """Also where the rank is smaller than both sides: a pair without size would have no gradient."""
    W = normal(12, 3) @ normal(3, 7)
    pieces = singular_pairs(W, 10, jax.random.key(0))
    np.testing.assert_allclose(pieces.V @ pieces.U, W, atol=1e-5)
    assert not np.asarray(pieces.U[3:]).any()
    assert (np.linalg.norm(pieces.V[:, 3:], axis=0) > 0.2).all()
    zero = singular_pairs(jnp.zeros((4, 5)), 6, jax.random.key(0))
    assert not np.asarray(zero.U).any() and np.asarray(zero.V).all()


def test_every_kind_of_site_starts_from_its_weight() -> None:
    sites = (Site("embed", 9, 4, 6, "embedding"), Site("fc.pre_identity", 4, 4, 5, "identity"), Site("fc", 4, 3, 3))
    weights = {"embed": normal(9, 4), "fc": normal(4, 3)}
    components = jit(lambda w: init_components(sites, jax.random.key(0), weights=w))(weights)
    np.testing.assert_allclose(faithfulness_loss(sites, weights, components), 0, atol=1e-10)


def test_a_tied_pair_starts_from_the_weight_of_its_owner() -> None:
    weights = {"linear1": normal(5, 2), "linear2": normal(5, 2).T}
    tied = init_components(PAIR, jax.random.key(0), TIE, weights)
    np.testing.assert_allclose(tied["linear1"].V @ tied["linear1"].U, weights["linear1"], atol=1e-5)
    np.testing.assert_allclose(tied["linear2"].V @ tied["linear2"].U, weights["linear2"], atol=1e-5)
    assert len(jax.tree.leaves(tied)) == 2
