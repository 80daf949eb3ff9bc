"""Transformer CI functions: chunks are separate networks, padding learns nothing, depth costs no program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import chain, filled, jit, normal, scene_of

from vpd.decomposition import Components, ComponentSet, Site
from vpd.importance import TransformerCI, init_transformer
from vpd.importance.transformer import Size, chunk_widths
from vpd.rotary import rotate
from vpd.targets import clean_forward

SIZE = Size(d_model=8, n_blocks=2, mlp_hidden=(12, 6), n_heads=2, max_len=16)
SITES = tuple(Site(f"h.{i}", 3 + i, 5, C=2 + i) for i in range(5))


def inputs_of(sites, *leading: int) -> dict:
    return {s.name: normal(*leading, s.d_in, key=i) for i, s in enumerate(sites)}


def init(sites, size: Size = SIZE, per_chunk: int | None = None):
    return lambda key: init_transformer(sites, size, key, per_chunk)


NOTHING = ComponentSet({s.name: Components(jnp.zeros((s.d_in, s.C)), jnp.zeros((s.C, s.d_out))) for s in SITES})


@jit
def pulled(fn: TransformerCI, inputs: dict) -> tuple:
    """Preactivations, and the gradient of the sum of their sines."""

    def loss(fn: TransformerCI) -> tuple:
        z = fn(inputs, NOTHING)
        return sum(jnp.sum(jnp.sin(x)) for x in z.values()), z

    (_, z), gradient = jax.value_and_grad(loss, has_aux=True)(fn)
    return z, gradient


def alone(fn: TransformerCI, chunk: int, sites) -> TransformerCI:
    """One chunk as a function of its own, without padding."""
    network = jax.tree.map(lambda x: x[chunk][None], fn.networks)
    width, out = sum(s.d_in for s in sites), sum(s.C for s in sites)
    padded = (network.embed.W, network.head.W, network.head.b)
    own = (padded[0][:, :width], padded[1][..., :out], padded[2][..., :out])
    network = eqx.tree_at(lambda n: (n.embed.W, n.head.W, n.head.b), network, own)
    return TransformerCI(network, tuple(sites), None, fn.max_len)


@pytest.mark.parametrize("leading", [(4,), (3, 7)])
def test_chunks_are_separate_transformers(leading: tuple[int, ...]) -> None:
    """Values and gradients, with a last chunk that is shorter and others that differ in width."""
    fn, inputs = jit(init(SITES, per_chunk=2))(jax.random.key(1)), inputs_of(SITES, *leading)
    assert [width for width, _ in chunk_widths(SITES, 2)] == [3 + 4, 5 + 6, 7]
    z, gradient = pulled(fn, inputs)
    assert {s: x.shape for s, x in z.items()} == {s.name: (*leading, s.C) for s in SITES}
    for i in range(3):
        mine = SITES[2 * i : 2 * i + 2]
        z_alone, g_alone = pulled(alone(fn, i, mine), {s.name: inputs[s.name] for s in mine})
        for s in mine:
            np.testing.assert_allclose(z[s.name], z_alone[s.name], rtol=1e-5, atol=1e-5)
        got = alone(TransformerCI(gradient.networks, fn.sites, fn.per_chunk, fn.max_len), i, mine)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(g_alone), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_padding_starts_at_0_and_learns_nothing() -> None:
    fn = jit(init(SITES, per_chunk=2))(jax.random.key(1))
    _, gradient = pulled(fn, inputs_of(SITES, 4))
    for tree in (fn.networks, gradient.networks):
        for i, (width, out) in enumerate(((7, 5), (11, 9), (7, 6))):
            assert np.asarray(tree.embed.W[i, :width]).all()
            assert not np.asarray(tree.embed.W[i, width:]).any()
            assert np.asarray(tree.head.W[i, :, :out]).all()
            assert not np.asarray(tree.head.W[i, :, out:]).any() and not np.asarray(tree.head.b[i, out:]).any()


def test_the_global_one_is_one_chunk() -> None:
    one, five = (jax.eval_shape(init(SITES, per_chunk=n), jax.random.key(0)) for n in (None, 5))
    assert jax.tree.structure(one.networks) == jax.tree.structure(five.networks)
    assert one.networks.embed.W.shape == (1, sum(s.d_in for s in SITES), 8)


def test_starts() -> None:
    size = Size(d_model=60, n_blocks=3, mlp_hidden=(50,), n_heads=2)
    network = jit(init(SITES, size))(jax.random.key(0)).networks
    blocks = network.blocks
    for W, gain, fan_in in (
        (network.embed.W, 2, 25),
        (blocks.mlp.hidden[0].W, 2, 60),
        (blocks.mlp.out.W, 1, 50),
        (network.head.W, 1, 60),
    ):
        np.testing.assert_allclose(np.std(W), (gain / fan_in) ** 0.5, rtol=4 / (2 * W.size) ** 0.5)
    for W in (blocks.q, blocks.k, blocks.v, blocks.o):
        np.testing.assert_allclose([W.min(), W.max()], [-(60**-0.5), 60**-0.5], rtol=1e-2)
        np.testing.assert_allclose(np.std(W), (60 * 3) ** -0.5, rtol=0.02)
    assert len({np.asarray(W).tobytes() for W in (blocks.q, blocks.k, blocks.v, blocks.o)}) == 4
    assert not np.asarray(network.embed.b).any() and not np.asarray(blocks.mlp.out.b).any()


def test_no_frequency_is_a_parameter() -> None:
    fn = jax.eval_shape(init(SITES), jax.random.key(0))
    names = {jax.tree_util.keystr(p[-1:], simple=True) for p, _ in jax.tree_util.tree_leaves_with_path(fn)}
    assert names == {"W", "b", "q", "k", "v", "o"}


def test_rotation_depends_on_distance_alone() -> None:
    """Scores of rotated vectors are those of complex numbers turned by position · base^(−2j/d)."""
    x = normal(1, 9, 1, 8)
    pairs = np.asarray(x[0, :, 0, :4]) + 1j * np.asarray(x[0, :, 0, 4:])
    turned = pairs * np.exp(1j * np.arange(9)[:, None] * 100.0 ** (-2 * np.arange(4) / 8))
    got = rotate(x, 100.0)[0, :, 0]
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


def test_a_sequence_beyond_max_len() -> None:
    fn = filled(init(SITES))
    jax.eval_shape(fn, inputs_of(SITES, 2, 16), NOTHING)
    with pytest.raises(ValueError, match=r"17 positions .* max_len 16"):
        jax.eval_shape(fn, inputs_of(SITES, 2, 17), NOTHING)
    jax.eval_shape(fn, inputs_of(SITES, 17), NOTHING)  # a batch is no sequence


def test_the_program_does_not_grow_with_the_blocks() -> None:
    def lines(n_blocks: int) -> int:
        size = Size(d_model=8, n_blocks=n_blocks, mlp_hidden=(12,), n_heads=2)
        fn = jax.eval_shape(init(SITES, size), jax.random.key(0))
        return len(jax.jit(lambda fn, x: fn(x, NOTHING)).lower(fn, inputs_of(SITES, 2, 3)).as_text().splitlines())

    assert lines(5) == lines(9)  # up to four blocks are written out
    assert lines(9) <= 1.1 * lines(2)


@pytest.mark.parametrize("per_chunk", [None, 1, 3])
def test_every_kind_of_site(per_chunk: int | None) -> None:
    """A lookup contributes V[x], and is the only one whose V gets a gradient."""
    target = chain()
    scene = scene_of(target, (2, 3))
    fn, inputs = filled(init(scene.sites, per_chunk=per_chunk)), jit(clean_forward)(target, scene.batch)[1]

    @jit
    def gradient(components: ComponentSet) -> tuple:
        def loss(components: ComponentSet) -> tuple:
            z = fn(inputs, components)
            return sum(jnp.sum(jnp.sin(x)) for x in z.values()), z

        return jax.grad(loss, has_aux=True)(components)

    got, z = gradient(scene.components)
    assert {s: x.shape for s, x in z.items()} == {s.name: (2, 3, s.C) for s in scene.sites}
    for site in scene.sites:
        assert np.asarray(got[site.name].V).any() == (site.kind == "embedding")


def test_every_position_sees_every_other() -> None:
    fn, inputs = filled(init(SITES)), inputs_of(SITES, 1, 6)

    @jit
    def slopes(x: jax.Array) -> jax.Array:
        return jax.jacobian(lambda x: fn(inputs | {"h.0": x}, NOTHING)["h.4"][0, :, 0])(x)

    assert np.abs(np.asarray(slopes(inputs["h.0"]))).max(axis=(1, 3)).all()
