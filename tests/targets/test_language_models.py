"""What holds for every language model: names, stacks, captures, types, and that depth costs no program."""

from typing import Any  # sites of a stack and of a single matrix side by side

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal, uniform
from targets.language_models import MAX_LEN, MODELS, llama, tokens

from vpd.decomposition import Components, ComponentSet, Site, SiteMask, dense
from vpd.decomposition.stacks import Span
from vpd.targets import clean_forward, frozen_weights, init_gpt2, init_llama, masked_site_outputs, recorded_forward
from vpd.targets.layers import with_cuts

every_model = pytest.mark.parametrize("name", MODELS)
TOKENS = tokens()


def matrix_in_layers(model) -> tuple[str, str]:
    """Prefix of the layers, and the rest of the path of the first linear matrix in them."""
    prefix = model.layers.prefix
    name = next(n for n in model.matrices() if n.startswith(f"{prefix}.0."))
    return prefix, name.removeprefix(f"{prefix}.0.")


@every_model
def test_matrices_are_those_of_the_forward_pass(name: str) -> None:
    model = MODELS[name]()
    found = {n: w.shape for n, w in jax.eval_shape(frozen_weights, model, TOKENS).items()}
    assert found == {n: (d_in, d_out) for n, (d_in, d_out, _) in model.matrices().items()}


def test_names_are_those_of_the_originals() -> None:
    assert {"model.embed_tokens", "model.layers.2.self_attn.q_proj", "model.layers.0.mlp.gate_proj", "lm_head"} <= set(
        llama().matrices()
    )
    assert {"transformer.wte", "transformer.h.0.attn.c_attn", "transformer.h.2.attn.c_proj"} <= set(
        MODELS["gpt2"]().matrices()
    )


@every_model
def test_a_stack_is_captured_as_its_layers_are(name: str) -> None:
    """A stack's inputs and outputs along a first axis are those of its matrices, each by its own path."""
    model = MODELS[name]()
    prefix, rest = matrix_in_layers(model)
    d_in, d_out, kind = model.matrices()[f"{prefix}.0.{rest}"]
    stack = Site(f"{prefix}.0-2.{rest}", d_in, d_out, 2, kind, Span(prefix, 0, 3))
    single = Site(f"{prefix}.1.{rest}", d_in, d_out, 2, kind)
    whole, alone = (jit(lambda m, x, s=s: recorded_forward(m, x, [s]))(model, TOKENS) for s in (stack, single))
    everything = jit(recorded_forward)(model, TOKENS)
    for part in ("inputs", "outputs"):
        stacked, one, all_ = (getattr(found, part) for found in (whole, alone, everything))
        assert list(stacked) == [stack.name] and list(one) == [single.name]
        for i, path in enumerate(stack.members):
            np.testing.assert_allclose(dense(stacked[stack.name])[i], dense(all_[path]), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dense(one[single.name]), dense(all_[single.name]), rtol=1e-5, atol=1e-5)


@every_model
@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)])
def test_layers_may_be_cut_anywhere(name: str, cuts: tuple[int, ...]) -> None:
    model = MODELS[name]()
    cut = with_cuts(model, lambda _: cuts)
    assert len(cut.layers.runs) == len(cuts) + 1
    forward = jit(lambda m, x: clean_forward(m, x)[0])
    np.testing.assert_allclose(forward(cut, TOKENS), forward(model, TOKENS), rtol=1e-5, atol=1e-5)


@every_model
def test_a_later_token_changes_nothing_earlier(name: str) -> None:
    model, changed = MODELS[name](), TOKENS.at[:, 4].add(1) % 20
    forward = jit(lambda m, x: clean_forward(m, x)[0])
    before, after = np.asarray(forward(model, TOKENS)), np.asarray(forward(model, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=-1).min() > 1e-4


@every_model
def test_positions_matter(name: str) -> None:
    """The same tokens in another order end in other logits."""
    model = MODELS[name]()
    forward = jit(lambda m, x: clean_forward(m, x)[0][:, -1])
    swapped = TOKENS.at[:, [0, 1]].set(TOKENS[:, [1, 0]])
    assert np.abs(np.asarray(forward(model, TOKENS) - forward(model, swapped))).max() > 1e-3


def masked_stack(model) -> tuple[ComponentSet, dict[str, Any]]:
    """Random components and masks of a stack of all layers and of one matrix outside of it."""
    prefix, rest = matrix_in_layers(model)
    d_in, d_out, _ = model.matrices()[f"{prefix}.0.{rest}"]
    d, vocab, _ = model.matrices()["lm_head"]
    stack = f"{prefix}.0-2.{rest}"
    components = ComponentSet(
        {
            stack: Components(normal(3, d_in, 2), normal(3, 2, d_out)),
            "lm_head": Components(normal(d, 2), normal(2, vocab)),
        }
    )
    delta = uniform(3, 2, 7)
    return components, {stack: SiteMask(uniform(3, 2, 7, 2), delta), "lm_head": SiteMask(uniform(2, 7, 2), delta[0])}


@every_model
def test_remat_changes_nothing(name: str) -> None:
    model = MODELS[name]()
    components, masks = masked_stack(model)

    def loss(pieces: ComponentSet, remat: bool) -> jax.Array:
        logits, _ = masked_site_outputs(model, pieces, TOKENS, masks, remat=remat)
        return jnp.mean(jnp.square(dense(logits)))

    plain, recomputed = (jit(jax.value_and_grad(lambda c, r=r: loss(c, r)))(components) for r in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, recomputed)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(plain[1]))


@every_model
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(name: str, dtype: str) -> None:
    """Logits in the type of the weights, close to those of the same weights in float32."""
    model = jax.tree.map(lambda x: x.astype(dtype), MODELS[name]())
    wide = jax.tree.map(lambda x: x.astype("float32"), model)
    forward = jit(lambda m, x: clean_forward(m, x)[0])
    got, want = forward(model, TOKENS), np.asarray(forward(wide, TOKENS))
    assert got.dtype == dtype
    assert np.abs(np.asarray(got, np.float32) - want).max() < 0.06 * np.abs(want).max()
    components, masks = masked_stack(model)
    masks, pieces = jax.tree.map(lambda x: x.astype(dtype), (masks, components))
    logits = jax.eval_shape(lambda m, c, k: dense(masked_site_outputs(m, c, TOKENS, k)[0]), model, pieces, masks)
    assert logits.dtype == dtype


@every_model
def test_the_program_does_not_grow_with_depth(name: str) -> None:
    def lines(n_layers: int) -> int:
        model = jax.eval_shape(lambda: MODELS[name](n_layers))
        return jax.jit(lambda m, x: clean_forward(m, x, [])[0]).lower(model, TOKENS).as_text().count("\n")

    deep = lines(32)
    assert deep == lines(16)
    assert deep < 1.2 * lines(2) + 60  # two layers are written out


@every_model
def test_too_long_a_sequence_is_refused_when_traced(name: str) -> None:
    model = MODELS[name]()
    longest = jnp.zeros((1, MAX_LEN), jnp.int32)
    assert jax.eval_shape(lambda m, x: clean_forward(m, x, [])[0], model, longest).shape[1] == MAX_LEN
    with pytest.raises(ValueError, match=f"{MAX_LEN + 1} tokens is longer than the network's {MAX_LEN}"):
        jax.eval_shape(lambda m, x: clean_forward(m, x, [])[0], model, jnp.zeros((1, MAX_LEN + 1), jnp.int32))


def test_init_scales() -> None:
    """N(0, 0.02²), what is added to the stream smaller by the square root of twice the depth."""
    small, close = 0.02 / np.sqrt(2 * 4), {"rtol": 0.1}
    model = jit(lambda: init_llama(300, 64, 4, 4, 2, 96, seed=3, tied=False))()
    stack = model.layers.whole
    for value in (model.embed_tokens, model.lm_head, stack.q_proj, stack.k_proj, stack.gate_proj, stack.up_proj):
        np.testing.assert_allclose(np.std(value), 0.02, **close)
    for value in (stack.o_proj, stack.down_proj):
        np.testing.assert_allclose(np.std(value), small, **close)
    gpt, other = jit(lambda: (init_gpt2(300, 64, 4, 4, seed=3), init_gpt2(300, 64, 4, 4, seed=4).wte))()
    np.testing.assert_allclose([np.std(gpt.layers.whole.attn_proj), np.std(gpt.layers.whole.mlp_proj)], small, **close)
    np.testing.assert_allclose([np.std(gpt.wpe), np.std(gpt.layers.whole.c_attn)], 0.02, **close)
    assert not np.any(gpt.layers.whole.c_attn_bias) and gpt.layers.whole.c_fc.shape == (4, 64, 256)
    assert not np.array_equal(other, gpt.wte)
