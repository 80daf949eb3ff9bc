"""Identities inserted before matrices: on every toy they are sites like the others."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import components_of, filled, jit, normal, pd_of, tms, uniform

from vpd.decomposition import SiteMask, dense
from vpd.errors import ConfigError
from vpd.objective import faithfulness_loss
from vpd.targets import (
    Target,
    clean_forward,
    frozen_weights,
    init_induction,
    init_resid_mlp,
    masked_forward,
    masked_site_outputs,
)
from vpd.training.build import sites_from

LOSSES = [{"type": "UnmaskedReconLoss", "coeff": 1.0}]


def resid() -> Target:
    return filled(lambda _: init_resid_mlp(4, 30, 3, 2, "relu", True, True))


def induction() -> Target:
    return jax.tree.map(lambda x: x / 2, filled(lambda _: init_induction(7, 4, 2, 2, 8, 0)))


# Target, its batch, a matrix with an identity before it, and where its weight is.
TOYS: dict[str, tuple[Callable[[], Target], jax.Array, str, Callable]] = {
    "tms": (lambda: tms(1, untied=True), uniform(5, 4), "linear2", lambda t: t.linear2),
    "resid_mlp": (resid, normal(5, 4), "layers.1.mlp_in", lambda t: t.layers[1].mlp_in),
    "induction": (
        induction,
        jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 6)).astype(np.int32)),
        "h.1.attn.v_proj",
        lambda t: t.layers[1].v_proj,
    ),
}
every_toy = pytest.mark.parametrize("name", TOYS)


def scene(name: str, also: str = "*"):
    """Target, batch, sites with an identity before one matrix, and random components."""
    make, batch, matrix, _ = TOYS[name]
    target = make()
    inserted = [{"module_pattern": matrix, "C": 3}]
    pd = pd_of(
        LOSSES, decomposition_targets=[{"module_pattern": also, "C": 4}], identity_decomposition_targets=inserted
    )
    sites = sites_from(pd, target)
    return target, batch, sites, components_of(sites)


@every_toy
def test_it_comes_before_its_matrix(name: str) -> None:
    target, _, sites, _ = scene(name)
    matrix = TOYS[name][2]
    names = [site.name for site in sites]
    assert [n for n in names if n != f"{matrix}.pre_identity"] == list(target.matrices())
    at = names.index(f"{matrix}.pre_identity")
    assert names[at + 1] == matrix
    width = target.matrices()[matrix][0]
    assert (sites[at].d_in, sites[at].d_out, sites[at].C, sites[at].kind) == (width, width, 3, "identity")


@every_toy
@pytest.mark.parametrize("live", ["all", "identity", "matrix"])
def test_all_masks_one_and_delta_one_is_the_target(name: str, live: str) -> None:
    target, batch, sites, components = scene(name)
    clean, inputs = jit(clean_forward)(target, batch)
    leading = clean.shape[:-1]
    chosen = {"all": [s.name for s in sites], "identity": [f"{TOYS[name][2]}.pre_identity"], "matrix": [TOYS[name][2]]}
    C = {s.name: s.C for s in sites}
    masks = {s: SiteMask(jnp.ones((*leading, C[s])), jnp.ones(leading)) for s in chosen[live]}
    out = jit(masked_forward)(target, components, batch, masks)
    scale = float(jnp.abs(clean).max())
    np.testing.assert_allclose(out / scale, clean / scale, atol=1e-5)
    random = {s: SiteMask(uniform(*leading, C[s]), uniform(*leading)) for s in chosen[live]}
    assert np.abs(jit(masked_forward)(target, components, batch, random) - clean).max() > 1e-2 * scale
    assert dense(inputs[f"{TOYS[name][2]}.pre_identity"]).shape[:-1] == leading


@every_toy
@pytest.mark.parametrize("delta", [0.0, None])
def test_without_the_identity_the_matrix_sees_zeros(name: str, delta: float | None) -> None:
    target, batch, _, components = scene(name)
    leading = jax.eval_shape(lambda: clean_forward(target, batch)[0]).shape[:-1]
    mask = SiteMask(jnp.zeros((*leading, 3)), None if delta is None else jnp.full(leading, delta))
    out, outputs = jit(masked_site_outputs)(target, components, batch, {f"{TOYS[name][2]}.pre_identity": mask})
    assert not dense(outputs[f"{TOYS[name][2]}.pre_identity"]).any()
    weight = TOYS[name][3]
    blind = eqx.tree_at(weight, target, jnp.zeros_like(weight(target)))
    want, _ = jit(clean_forward)(blind, batch)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want - jit(clean_forward)(target, batch)[0]).max() > 0.1


@every_toy
def test_what_a_masked_identity_computes(name: str) -> None:
    """``((x V) m) U + δ (x − (x V) U)``, which its matrix and every other user of its input tell apart."""
    target, batch, _, components = scene(name)
    _, inputs = jit(clean_forward)(target, batch)
    matrix = TOYS[name][2]
    identity = f"{matrix}.pre_identity"
    x = np.asarray(dense(inputs[identity]), np.float64)
    m, d = uniform(*x.shape[:-1], 3), uniform(*x.shape[:-1], key=1)
    routed = jnp.asarray(np.random.default_rng(1).uniform(size=x.shape[:-1]) < 0.5)
    beside = SiteMask(jnp.zeros(components[matrix].V.shape[1]), None, jnp.zeros_like(routed))  # live, routed nowhere
    masks = {identity: SiteMask(m, d, routed), matrix: beside}
    _, outputs = jit(masked_site_outputs)(target, components, batch, masks)
    V, U = (np.asarray(a, np.float64) for a in (components[identity].V, components[identity].U))
    want = ((x @ V) * np.asarray(m)) @ U + np.asarray(d)[..., None] * (x - x @ V @ U)
    want = np.where(np.asarray(routed)[..., None], want, x)
    np.testing.assert_allclose(dense(outputs[identity]), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    weights, bias = jit(frozen_weights)(target, batch), 0.0
    if name == "tms":
        bias = np.asarray(target.bias)
    if name == "resid_mlp":
        bias = np.asarray(target.layers[1].in_bias)
    seen = want @ np.asarray(weights[matrix]) + bias
    np.testing.assert_allclose(outputs[matrix], seen, rtol=1e-3, atol=1e-4 * np.abs(seen).max())


@every_toy
def test_faithfulness_is_to_the_identity(name: str) -> None:
    target, batch, sites, components = scene(name)
    weights = jit(frozen_weights)(target, batch)
    got = jit(partial(faithfulness_loss, sites))(weights, components)
    pieces = {s.name: np.asarray(components[s.name].V) @ np.asarray(components[s.name].U) for s in sites}
    W = {s.name: np.eye(s.d_in) if s.kind == "identity" else np.asarray(weights[s.name]) for s in sites}
    want = sum(((W[s] - pieces[s]) ** 2).sum() for s in W) / sum(w.size for w in W.values())
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("name", "pattern"), [("induction", "wte"), ("tms", "linear3"), ("resid_mlp", "layers.2.*")])
def test_before_a_lookup_or_nothing_is_refused(name: str, pattern: str) -> None:
    pd = pd_of(LOSSES, identity_decomposition_targets=[{"module_pattern": pattern, "C": 3}])
    with pytest.raises(ConfigError, match=r"pd\.identity_decomposition_targets\[0\]"):
        sites_from(pd, TOYS[name][0]())
