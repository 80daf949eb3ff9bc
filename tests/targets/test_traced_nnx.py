"""Flax NNX models: a stack built by vmap and run by scan, recomputed; attention with its heads in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_traced_forward import compare_with_another_weight, sites_of
from traced_models import Case, Matrices, tokens

from vpd.targets import clean_forward

nnx = pytest.importorskip("flax.nnx")
DEPTH, D = 3, 4


class Block(nnx.Module):
    """Attention and MLP."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, D, decode=False, rngs=rngs)
        self.up = nnx.Linear(D, 6, rngs=rngs)
        self.down = nnx.Linear(6, D, rngs=rngs)
        self.norm = nnx.LayerNorm(D, rngs=rngs)

    def __call__(self, h):
        """``[B, T, d]``."""
        h = h + self.attention(self.norm(h), mask=nnx.make_causal_mask(h[..., 0]))
        return h + self.down(nnx.gelu(self.up(h)))


class Network(nnx.Module):
    """An embedding, a stack of blocks, a head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, D, rngs=rngs)
        self.blocks = nnx.vmap(lambda rngs: Block(rngs))(rngs.fork(split=DEPTH))
        self.head = nnx.Linear(D, 7, rngs=rngs)

    def __call__(self, tokens):
        """``[B, T]``."""

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def layers(h, block):
            return block(h)

        return self.head(layers(self.embed(tokens), self.blocks))


def network() -> Case:
    graph, state, others = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def forward(state, batch):
        return nnx.merge(graph, state, others, copy=True)(batch)

    def edited(state, W: Matrices):
        flat = dict(nnx.to_flat_state(state))

        def put(path: tuple[str, ...], value: jax.Array) -> None:
            flat[path] = flat[path].replace(value.reshape(flat[path].get_value().shape))

        put(("embed", "embedding"), W["embed/embedding"])
        put(("head", "kernel"), W["head/kernel"])
        for name in ("up", "down", "attention/query", "attention/key", "attention/value", "attention/out"):
            put(
                ("blocks", *name.split("/"), "kernel"),
                jnp.stack([W[f"blocks.{i}.{name}/kernel"] for i in range(DEPTH)]),
            )
        return nnx.from_flat_state(list(flat.items()))

    return Case(forward, state, tokens(), {"*/embedding": 3, "*/kernel": 3}, edited)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stack_that_is_run_by_scan() -> None:
    case = network()
    target = case.target()
    names = [site.name for site in sites_of(target)]
    assert names[0] == "embed/embedding" and "blocks.0-2.attention/query/kernel" in names
    clean, inputs = clean_forward(target, case.batch, sites_of(target))
    np.testing.assert_allclose(clean, case.forward(case.params, case.batch), atol=1e-6)
    assert inputs["blocks.0-2.attention/out/kernel"].shape == (DEPTH, 2, 5, D)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_constant_masks_are_another_weight() -> None:
    compare_with_another_weight(network())
