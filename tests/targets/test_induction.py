"""The induction transformer: its forward pass, its sites, its start and its training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import filled, jit
from targets.numpy_attention import induction

from vpd.config.targets import InductionTarget
from vpd.data.build import sequence_batches
from vpd.targets import Induction, clean_forward, frozen_weights, init_induction, pretrain_induction
from vpd.targets.build import fresh_target
from vpd.targets.induction import AttentionLayer

VOCAB, D, T = 9, 8, 6
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (3, T)).astype(np.int32))


def network(n_layers: int = 2, n_heads: int = 2, key: int = 0) -> Induction:
    """A random one whose attention is far from uniform."""
    shapes = partial(init_induction, VOCAB, D, n_layers, n_heads, T)
    return jax.tree.map(lambda x: x / 2, filled(lambda _: shapes(0), key))


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 2), (3, 4)])
def test_the_forward_pass_against_numpy(n_layers: int, n_heads: int) -> None:
    target = network(n_layers, n_heads)
    logits, inputs = jit(clean_forward)(target, TOKENS)
    want, want_inputs = induction(target, np.asarray(TOKENS))
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
    for name, x in want_inputs.items():
        np.testing.assert_allclose(inputs[name], x, rtol=1e-4, atol=1e-4)
    for name in set(want_inputs) - {"wte"}:
        np.testing.assert_array_equal(inputs[f"{name}.pre_identity"], inputs[name])
    assert set(inputs) == {*want_inputs, *(f"{name}.pre_identity" for name in want_inputs if name != "wte")}


def test_a_later_token_changes_nothing_earlier() -> None:
    forward = jit(lambda target, tokens: clean_forward(target, tokens)[0])
    changed = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % VOCAB)
    before, after = np.asarray(forward(network(), TOKENS)), np.asarray(forward(network(), changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=(0, 2)).max() > 0


def test_matrices_are_those_of_the_run_file_in_numeric_order() -> None:
    block = InductionTarget.model_validate(
        {"kind": "induction", "vocab": VOCAB, "n_layers": 11, "n_heads": 2, "d_model": D, "seq_len": 16}
        | {"pretrain": {"steps": 1, "batch_size": 2, "lr": 0.1}}
    )
    target = jax.eval_shape(lambda: fresh_target(block))
    assert isinstance(target, Induction)
    found = target.matrices()
    assert {name: shape[:2] for name, shape in found.items()} == block.site_shapes
    assert list(found) == list(block.site_shapes)
    layers = [name.split(".")[1] for name in found if name.endswith("q_proj")]
    assert layers == [str(i) for i in range(11)]
    assert [kind for _, _, kind in found.values()] == ["embedding", *["linear"] * 45]
    weights = jax.eval_shape(frozen_weights, target, TOKENS)
    assert {name: w.shape for name, w in weights.items()} == block.site_shapes


def test_the_head_is_the_transposed_embedding() -> None:
    weights = jit(frozen_weights)(network(), TOKENS)
    np.testing.assert_array_equal(weights["lm_head"], weights["wte"].T)


def test_divergence_is_kl_from_clean_to_masked() -> None:
    rng = np.random.default_rng(0)
    clean, masked = (rng.normal(size=(2, T, VOCAB)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (clean.astype(np.float64), masked.astype(np.float64)))
    got = network().divergence(jnp.asarray(clean), jnp.asarray(masked))
    np.testing.assert_allclose(got, (p * np.log(p / q)).sum(-1), rtol=1e-5, atol=1e-6)
    other = network().divergence(jnp.asarray(masked), jnp.asarray(clean))
    assert np.abs(np.asarray(other) - np.asarray(got)).min() > 1e-3
    assert network().divergence(jnp.asarray(clean), jnp.asarray(masked, jnp.bfloat16)).dtype == jnp.float32


def test_start() -> None:
    start = jit(lambda seed: init_induction(300, 64, 2, 2, 32, seed))
    target = start(np.int32(0))
    for weight in jax.tree.leaves(target):
        np.testing.assert_allclose(np.std(weight), 64**-0.5, rtol=0.04)
    every = [target.wte[:64], *jax.tree.leaves(target.layers)]
    assert all((np.asarray(a) != b).all() for i, a in enumerate(every) for b in every[:i])
    assert (np.asarray(start(np.int32(1)).wte) != target.wte).mean() > 0.99
    assert isinstance(target.layers[0], AttentionLayer)


def test_training_learns_and_repeats_itself() -> None:
    draw = partial(sequence_batches(VOCAB, 16, 32, "pretrain"), jnp.uint32(0))

    def cross_entropy(target: Induction) -> float:
        tokens = np.asarray(draw(jnp.int32(1000)))
        logits = np.asarray(jit(clean_forward)(target, tokens)[0], np.float64)[:, :-1]
        log_z = np.log(np.exp(logits).sum(-1))
        return float(np.mean(log_z - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]))

    fresh = init_induction(VOCAB, 8, 1, 1, 16, seed=0)
    trained, loss = pretrain_induction(fresh, draw, 80, 0.02)
    again, _ = pretrain_induction(fresh, draw, 80, 0.02)
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    before, after = cross_entropy(fresh), cross_entropy(trained)
    assert after < before - 0.1
    assert abs(float(loss) - after) < 0.3  # the loss it reports is that of its last batch
