"""Shapes, starts, orders and gradient paths of the MLP functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import chain, components_of, filled, jit, normal, scene_of, sites_of, tms
from scipy.stats import norm

from vpd.decomposition import ComponentSet, Site
from vpd.importance import init_global_mlp, init_layerwise_mlp
from vpd.importance.mlp import Affine, SiteMLP
from vpd.targets import clean_forward

WIDE = (Site("a", 40, 3, C=30), Site("b", 50, 3, C=40))
LAYERWISE = ("mlp", "vector_mlp", "shared_mlp")


def init(fn_type: str, sites, hidden_dims):
    return lambda key: (
        init_global_mlp(sites, hidden_dims, key)
        if fn_type == "global_shared_mlp"
        else init_layerwise_mlp(fn_type, sites, hidden_dims, key)
    )


def gelu(x: np.ndarray) -> np.ndarray:
    return x * norm.cdf(x).astype(x.dtype)


def layers(mlp: SiteMLP) -> list[Affine]:
    return [*mlp.hidden, mlp.out]


SHAPES = {
    "mlp": ((40,), 1, 1),
    "vector_mlp": ((40,), 50, 1),
    "shared_mlp": ((), 50, 40),
    "global_shared_mlp": ((), 90, 70),
}


@pytest.mark.parametrize("fn_type", SHAPES)
def test_shapes(fn_type: str) -> None:
    fn = jax.eval_shape(init(fn_type, WIDE, (6, 4)), jax.random.key(0))
    stack, first, last = SHAPES[fn_type]
    found = layers(fn.mlp if fn_type == "global_shared_mlp" else fn.sites["b"])
    widths = (first, 6, 4, last)
    for i, layer in enumerate(found):
        assert layer.W.shape == (*stack, widths[i], widths[i + 1])
        assert layer.b.shape == (*stack, widths[i + 1])


@pytest.fixture(scope="module")
def fresh() -> tuple:
    """Gates of two sites, gates of the first alone, and a global MLP."""
    gates, alone, together = (
        init("mlp", WIDE, (60,)),
        init("mlp", WIDE[:1], (60,)),
        init("global_shared_mlp", WIDE, (60, 20)),
    )
    return jit(lambda key: (gates(key), alone(key), together(key)))(jax.random.key(0))


def test_deviations(fresh) -> None:
    for mlp in (fresh[0].sites["b"], fresh[2].mlp):
        for layer in layers(mlp):
            assert not np.asarray(layer.b).any()
            std = ((1.0 if layer is mlp.out else 2.0) / layer.W.shape[-2]) ** 0.5
            np.testing.assert_allclose(np.std(layer.W), std, rtol=4 / (2 * layer.W.size) ** 0.5)


def test_later_sites_change_no_earlier_start(fresh) -> None:
    for x, y in zip(jax.tree.leaves(fresh[0].sites["a"]), jax.tree.leaves(fresh[1].sites["a"]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("fn_type", ["mlp", "vector_mlp"])
def test_networks_per_subcomponent_need_a_hidden_layer(fn_type: str) -> None:
    with pytest.raises(ValueError, match="at least one hidden layer"):
        init_layerwise_mlp(fn_type, WIDE, (), jax.random.key(0))


@pytest.mark.parametrize("hidden", [(5,), (5, 4)])
@pytest.mark.parametrize("fn_type", [*LAYERWISE, "global_shared_mlp"])
def test_preactivations_of_every_kind_of_site(fn_type: str, hidden: tuple[int, ...]) -> None:
    target = chain()
    scene = scene_of(target, (2, 3))
    fn = filled(init(fn_type, scene.sites, hidden))
    inputs = jax.eval_shape(clean_forward, target, scene.batch)[1]
    z = jax.eval_shape(fn, inputs, scene.components)
    assert {s: x.shape for s, x in z.items()} == {s.name: (2, 3, s.C) for s in scene.sites}


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4)])
def test_shared_mlp_is_the_plain_network(hidden: tuple[int, ...]) -> None:
    fn, x = filled(init("shared_mlp", WIDE[:1], hidden)), normal(5, 40)
    h = np.asarray(x)
    for layer in fn.sites["a"].hidden:
        h = gelu(h @ np.asarray(layer.W) + np.asarray(layer.b))
    got = jit(lambda x, c: fn(x, c))({"a": x}, components_of(WIDE))["a"]
    np.testing.assert_allclose(got, h @ fn.sites["a"].out.W + fn.sites["a"].out.b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fn_type", ["mlp", "vector_mlp"])
def test_networks_per_subcomponent_are_separate(fn_type: str) -> None:
    """Network c alone, written out, gives column c."""
    fn, x, components = filled(init(fn_type, WIDE[:1], (6, 4))), normal(5, 40), components_of(WIDE)
    mlp, c = fn.sites["a"], 7
    h = (np.asarray(x) @ np.asarray(components["a"].V))[:, c : c + 1] if fn_type == "mlp" else np.asarray(x)
    for layer in mlp.hidden:
        h = gelu(h @ np.asarray(layer.W)[c] + np.asarray(layer.b)[c])
    got = jit(lambda x, c: fn(x, c))({"a": x}, components)["a"]
    np.testing.assert_allclose(
        got[:, c], (h @ np.asarray(mlp.out.W)[c] + np.asarray(mlp.out.b)[c])[:, 0], rtol=1e-4, atol=1e-4
    )


def test_the_global_one_keeps_the_order_of_the_sites() -> None:
    """Twelve layers: neither the inputs nor the split are sorted as strings."""
    sites = tuple(Site(f"h.{i}", 2, 2, C=i + 1) for i in range(12))
    fn = filled(init("global_shared_mlp", sites, ()))
    assert fn.sites == sites
    inputs = {s.name: normal(3, 2, key=i) for i, s in reversed(list(enumerate(sites)))}
    z = fn(inputs, components_of(sites))
    assert {s: x.shape for s, x in z.items()} == {s.name: (3, s.C) for s in sites}
    joined = np.concatenate([inputs[s.name] for s in sites], axis=-1) @ fn.mlp.out.W + fn.mlp.out.b
    got = np.concatenate([z[s.name] for s in sites], axis=-1)
    np.testing.assert_allclose(got, joined, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fn_type", [*LAYERWISE, "global_shared_mlp"])
def test_which_functions_send_a_gradient_to_V(fn_type: str) -> None:
    target = chain()
    scene = scene_of(target, (2, 3))
    fn, inputs = filled(init(fn_type, scene.sites, (5,))), jit(clean_forward)(target, scene.batch)[1]

    @jit
    def gradient(components):
        return jax.grad(lambda c: sum(jnp.sum(jnp.sin(z)) for z in fn(inputs, c).values()))(components)

    got = gradient(scene.components)
    for site in scene.sites:
        reads_V = fn_type == "mlp" or site.kind == "embedding"
        assert np.asarray(got[site.name].V).any() == reads_V
        assert not np.asarray(got[site.name].U).any()


def test_the_gates_of_tied_sites_send_gradients_to_both_matrices_of_the_owner() -> None:
    target = tms()
    sites = tuple(Site(s.name, s.d_in, s.d_out, 3) for s in sites_of(target))
    owner = components_of(sites)["linear1"]
    fn = filled(init("mlp", sites, (5,)))
    x = {s.name: normal(4, s.d_in) for s in sites}

    def loss(pair):
        tied = ComponentSet({"linear1": pair}, (("linear2", "linear1"),))
        return sum(jnp.sum(z) for z in fn(x, tied).values())

    got = jit(jax.grad(loss))(owner)
    assert np.asarray(got.V).any() and np.asarray(got.U).any()
