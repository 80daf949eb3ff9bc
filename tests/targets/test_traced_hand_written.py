"""LlamaSimpleMLP as a plain function, traced, is the target that was written by hand: outputs, captures, gradients."""

from functools import partial
from typing import Any  # parameters are nested blocks of arrays

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vpd
from vpd.decomposition import ComponentSet, Site, SiteMask, dense, init_components
from vpd.targets import masked_site_outputs, recorded_forward
from vpd.targets.attention import causal_attention
from vpd.targets.base import Target
from vpd.targets.layers import layers_of
from vpd.targets.norms import rms_norm
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP, init_simple_mlp_lm
from vpd.training.build import cut_for, stacked_sites

PARTS = {"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("c_fc", "down_proj")}
ALIASES = {"wte#0": "wte", "wte#1": "lm_head"} | {
    f"h.*.{part}/{name}": f"h.*.{part}.{name}" for part, names in PARTS.items() for name in names
}


def forward(p: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """The same network in the style of a script."""

    @jax.checkpoint
    def layer(h: jax.Array, w: dict[str, Any]) -> tuple[jax.Array, None]:
        x, attn = rms_norm(h, w["rms_1"], 1e-6), w["attn"]
        q, k, v = x @ attn["q_proj"], x @ attn["k_proj"], x @ attn["v_proj"]
        h = h + causal_attention(q, k, v, 2, 1, 10000.0) @ attn["o_proj"]
        hidden = jax.nn.gelu(rms_norm(h, w["rms_2"], 1e-6) @ w["mlp"]["c_fc"], approximate=True)
        return h + hidden @ w["mlp"]["down_proj"], None

    h, _ = jax.lax.scan(layer, p["wte"][tokens], p["h"])
    return rms_norm(h, p["ln_f"], 1e-6) @ p["wte"].T


@pytest.fixture(scope="module")
def by_hand() -> LlamaSimpleMLP:
    small = init_simple_mlp_lm(vocab=11, d_model=8, n_layers=5, n_heads=2, n_kv_heads=1, d_mlp=12, seed=0)
    # Large enough that nothing is hidden in rounding.
    return jax.tree.map(lambda w: w * 8 if w.ndim > 1 and w.shape != (5, 8) else w, small)


@pytest.fixture(scope="module")
def traced(by_hand: LlamaSimpleMLP) -> vpd.TracedTarget:
    stack = by_hand.layers.runs[0]
    params = {"wte": by_hand.wte, "ln_f": by_hand.ln_f, "h": {"rms_1": stack.rms_1, "rms_2": stack.rms_2}}
    for part, names in PARTS.items():
        params["h"][part] = {name: getattr(stack, name) for name in names}
    globs = {"wte": 4, "h/attn/*": 3, "h/mlp/*": 3}
    return vpd.trace(forward, params, jnp.zeros((2, 6), jnp.int32), globs, aliases=ALIASES)


def test_the_same_matrices_in_the_same_order(by_hand: LlamaSimpleMLP, traced: vpd.TracedTarget) -> None:
    assert traced.matrices() == by_hand.matrices()
    assert list(traced.matrices()) == list(by_hand.matrices())


def masks_for(sites: tuple[Site, ...], leading: tuple[int, ...]) -> dict[str, SiteMask]:
    masks: dict[str, SiteMask] = {}
    for i, site in enumerate(sites):
        a, b, c = jax.random.split(jax.random.key(i), 3)
        shape = (*site.stack, *leading)
        masks[site.name] = SiteMask(
            jax.random.uniform(a, (*shape, site.C)), jax.random.uniform(b, shape), jax.random.bernoulli(c, 0.6, shape)
        )
    return masks


@pytest.mark.parametrize("cut", [False, True], ids=["one stack", "cut"])
def test_outputs_captures_and_gradients_are_those_of_the_hand_written_target(
    by_hand: LlamaSimpleMLP, traced: vpd.TracedTarget, cut: bool
) -> None:
    flat = [
        Site(name, d_in, d_out, 5 if cut and ".1." in name else 3, kind)
        for name, (d_in, d_out, kind) in by_hand.matrices().items()
    ]
    sites = stacked_sites(flat, layers_of(by_hand))
    assert stacked_sites(flat, layers_of(traced)) == sites
    tokens = jax.random.randint(jax.random.key(7), (3, 6), 0, 11)
    components, masks = init_components(sites, jax.random.key(8)), masks_for(sites, (3, 6))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
    def views(target: Target) -> dict[str, Any]:
        def loss(components: ComponentSet, masks: dict[str, SiteMask]) -> tuple[jax.Array, Any]:
            output, hidden = masked_site_outputs(target, components, tokens, masks)
            return jnp.mean(target.divergence(clean.output, output)), (dense(output), hidden)

        clean = recorded_forward(target, tokens, sites)
        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
        (value, found), (of_components, of_masks) = grad(components, masks)
        return {
            "clean": (dense(clean.output), clean.inputs, {n: dense(y) for n, y in clean.outputs.items()}),
            "masked": (value, found[0], {n: dense(y) for n, y in found[1].items()}),
            "gradients": (of_components, {n: (m.component, m.delta) for n, m in of_masks.items()}),
        }

    got, expected = (jax.device_get(views(cut_for(t, sites))) for t in (traced, by_hand))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=1e-6 * scale, err_msg=jax.tree_util.keystr(path))
