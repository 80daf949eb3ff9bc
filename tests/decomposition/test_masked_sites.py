"""The masked site, and what the seam makes of it on whole targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import Chain, batch_of, chain, components_of, jit, normal, scene_of, sites_of, tms, uniform

from vpd.decomposition import Components, SiteMask, masked_site, site_delta, site_inner
from vpd.targets import Target, clean_forward, frozen_weights, masked_forward, masked_site_outputs
from vpd.targets.base import with_identities

TARGETS = {
    "tms": (lambda: tms(), (5,)),
    "tms-untied": (lambda: tms(untied=True), (5,)),
    "tms-id": (lambda: tms(hidden=1), (5,)),
    "chain": (lambda: chain(), (3, 4)),
}
on_all_targets = pytest.mark.parametrize("name", TARGETS)
forward = jit(masked_forward)


def scene(name: str):
    make, leading = TARGETS[name]
    return scene_of(make(), leading)


def full(shape: tuple[int, ...], value: float = 1.0) -> jax.Array:
    return jnp.asarray(np.full(shape, value, np.float32))


@on_all_targets
def test_small_targets_are_targets(name: str) -> None:
    target = TARGETS[name][0]()
    assert isinstance(target, Target)
    inputs = jax.eval_shape(clean_forward, target, batch_of(target, TARGETS[name][1]))[1]
    assert set(inputs) == set(with_identities(target.matrices()))


@on_all_targets
def test_all_ones_with_delta_is_the_target(name: str) -> None:
    s = scene(name)
    ones = {x.name: SiteMask(full((*s.leading, x.C)), full(s.leading)) for x in s.sites}
    out = forward(s.target, s.components, s.batch, ones)
    np.testing.assert_allclose(out, s.clean, rtol=1e-5, atol=1e-5)
    without = {x: SiteMask(mask.component) for x, mask in ones.items()}
    assert np.abs(np.asarray(forward(s.target, s.components, s.batch, without)) - s.clean).max() > 0.1


@on_all_targets
def test_no_routing_anywhere_is_the_target(name: str) -> None:
    s = scene(name)
    nowhere = jnp.asarray(np.zeros(s.leading, bool))
    masks = {x.name: SiteMask(full((*s.leading, x.C), 0.0), full(s.leading, 0.0), nowhere) for x in s.sites}
    out = forward(s.target, s.components, s.batch, masks)
    np.testing.assert_allclose(out, s.clean, rtol=1e-6, atol=1e-6)


def other_weight(weight, components: Components, m, delta: float) -> np.ndarray:
    """``W' = δ W + V diag(m − δ) U``: a mask without positions is another weight."""
    V, U, m = np.asarray(components.V), np.asarray(components.U), np.asarray(m)
    return delta * np.asarray(weight) + V @ np.diag(m - delta) @ U


@pytest.mark.parametrize("delta", [None, 0.0, 0.3])
def test_constant_masks_are_another_weight_chain(delta: float | None) -> None:
    s = scene("chain")
    m = {x.name: uniform(x.C) for x in s.sites}
    d = None if delta is None else full(s.leading, delta)
    masks = {x: SiteMask(jnp.asarray(np.tile(v, (*s.leading, 1))), d) for x, v in m.items()}
    got, outputs = jit(masked_site_outputs)(s.target, s.components, s.batch, masks)
    weights = {"embed": s.target.embed, "fc1.pre_identity": np.eye(4), "fc1": s.target.fc1, "fc2": s.target.fc2}
    W = {x: other_weight(w, s.components[x], m[x], delta or 0.0) for x, w in weights.items()}
    moved = (W["embed"] @ W["fc1.pre_identity"], W["fc1"], s.target.bias, W["fc2"])
    want, inputs = jit(clean_forward)(Chain(*(jnp.asarray(x, jnp.float32) for x in moved)), s.batch)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    before_tanh = np.asarray(inputs["fc1"]) @ W["fc1"] + np.asarray(s.target.bias)
    np.testing.assert_allclose(outputs["fc1"], before_tanh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [0, 1])
def test_constant_masks_are_another_weight_tms(hidden: int) -> None:
    s = scene_of(tms(hidden))
    m = {x.name: uniform(x.C) for x in s.sites}
    masks = {x.name: SiteMask(m[x.name], full((), 0.4)) for x in s.sites}
    got = forward(s.target, s.components, s.batch, masks)
    weights = frozen_weights(s.target, s.batch)
    x = np.asarray(s.batch)
    for site in s.sites:
        x = x @ other_weight(weights[site.name], s.components[site.name], m[site.name], 0.4)
    np.testing.assert_allclose(got, np.maximum(x + np.asarray(s.target.bias), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_delta", [True, False])
def test_routing_chooses_position_by_position(with_delta: bool) -> None:
    x, W, b = normal(3, 4, 5), normal(5, 2), normal(2)
    c = Components(normal(5, 3), normal(3, 2, key=1))
    m, delta = uniform(3, 4, 3), uniform(3, 4) if with_delta else None
    routing = np.random.default_rng(0).random((3, 4)) < 0.5
    got = jit(masked_site)(x, W, c, SiteMask(m, delta, jnp.asarray(routing)), b)
    n = {k: np.asarray(v) for k, v in {"x": x, "W": W, "V": c.V, "U": c.U, "b": b, "m": m}.items()}
    d = np.asarray(delta)[..., None] if with_delta else np.float32(0)
    masked = (n["x"] @ n["V"] * n["m"]) @ n["U"] + d * (n["x"] @ (n["W"] - n["V"] @ n["U"])) + n["b"]
    want = np.where(routing[..., None], masked, n["x"] @ n["W"] + n["b"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@on_all_targets
def test_a_site_that_is_not_live_gets_no_gradient(name: str) -> None:
    s = scene(name)

    @jit
    def gradients(components, masks):
        return jax.grad(lambda c: jnp.sum(masked_forward(s.target, c, s.batch, masks) ** 2))(components)

    for live in (s.sites[0], s.sites[-1]):
        got = gradients(s.components, {live.name: SiteMask(full((*s.leading, live.C), 0.7), full(s.leading, 0.2))})
        for site in s.sites:
            for leaf in jax.tree.leaves(got[site.name]):
                assert np.asarray(leaf).any() == (site.name == live.name)


@pytest.mark.parametrize("kind", ["linear", "embedding", "identity"])
def test_delta_is_live(kind: str) -> None:
    """Gradients through δ reach V and U as finite differences in float64 say."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        d_in, d_out, C = (3, 3, 2) if kind == "identity" else (3, 2, 2)
        x = jnp.asarray([0, 2, 1, 2]) if kind == "embedding" else jnp.asarray(rng.normal(size=(4, d_in)))
        W = None if kind == "identity" else jnp.asarray(rng.normal(size=(d_in, d_out)))
        at = Components(jnp.asarray(rng.normal(size=(d_in, C))), jnp.asarray(rng.normal(size=(C, d_out))))
        mask = SiteMask(jnp.asarray(rng.random((4, C))), jnp.asarray(rng.random(4)))
        assert at.V.dtype == jnp.float64

        @jit
        def value_and_gradient(c: Components):
            return jax.value_and_grad(lambda c: jnp.sum(jnp.sin(masked_site(x, W, c, mask, kind=kind))))(c)

        _, gradient = value_and_gradient(at)
        for wrt in ("V", "U"):
            value = np.asarray(getattr(at, wrt))
            for index in np.ndindex(value.shape):
                step = np.zeros_like(value)
                step[index] = 1e-6
                up, down = (
                    value_and_gradient(Components(**{"V": at.V, "U": at.U, wrt: jnp.asarray(value + s)}))[0]
                    for s in (step, -step)
                )
                slope = (float(up) - float(down)) / 2e-6
                np.testing.assert_allclose(getattr(gradient, wrt)[index], slope, rtol=1e-6, atol=1e-8)


def test_delta_gradient_equals_that_of_the_formed_delta() -> None:
    x, W = normal(5, 4), normal(4, 3)
    c, m, d = Components(normal(4, 2), normal(2, 3)), uniform(5, 2), uniform(5)

    def formed(c: Components) -> jax.Array:
        return jnp.sum(jnp.cos((x @ c.V * m) @ c.U + d[:, None] * (x @ site_delta(W, c))))

    def ours(c: Components) -> jax.Array:
        return jnp.sum(jnp.cos(masked_site(x, W, c, SiteMask(m, d))))

    got, want = jit(lambda c: (jax.grad(ours)(c), jax.grad(formed)(c)))(c)
    np.testing.assert_allclose(got.V, want.V, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.U, want.U, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_a_matrix_on_one_hot_rows() -> None:
    rows = np.asarray([[0, 2], [3, 3]], np.int32)
    one_hot = jnp.asarray(np.eye(4, dtype=np.float32)[rows])
    c, W, mask = Components(normal(4, 3), normal(3, 2)), normal(4, 2), SiteMask(uniform(2, 2, 3), full((2, 2), 0.25))
    np.testing.assert_allclose(site_inner(jnp.asarray(rows), c, "embedding"), np.asarray(c.V)[rows], rtol=1e-6)
    got = masked_site(jnp.asarray(rows), W, c, mask, kind="embedding")
    np.testing.assert_allclose(got, masked_site(one_hot, W, c, mask), rtol=1e-5, atol=1e-6)


def test_an_identity_site_is_a_unit_matrix() -> None:
    x, c = normal(3, 4), Components(normal(4, 2), normal(2, 4))
    mask = SiteMask(full((3, 2), 0.7), full((3,), 0.2), jnp.asarray([True, False, True]))
    got = masked_site(x, None, c, mask, kind="identity")
    want = masked_site(x, jnp.asarray(np.eye(4, dtype=np.float32)), c, mask)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_decomposing_some_sites_leaves_the_others_frozen() -> None:
    target = chain()
    sites = sites_of(target)[2:3]
    batch = batch_of(target, (2, 3))
    masks = {"fc1": SiteMask(full((2, 3, sites[0].C)), full((2, 3)))}
    got, outputs = jit(masked_site_outputs)(target, components_of(sites), batch, masks)
    clean, inputs = jit(clean_forward)(target, batch)
    np.testing.assert_allclose(got, clean, rtol=1e-5, atol=1e-5)
    assert set(inputs) == set(with_identities(target.matrices()))
    assert list(outputs) == ["fc1"]
