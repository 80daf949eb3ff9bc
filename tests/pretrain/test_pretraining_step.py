"""One update: the loss of next tokens, AdamW with decay on matrices alone, the same bits however it is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vpd.config import PretrainingConfig
from vpd.decomposition import dense
from vpd.objective.schedule import Schedule
from vpd.pretrain.model import abstract_model, fresh_model, is_decayed, parameter_count
from vpd.pretrain.step import PretrainState, Rule, first_state, mean_loss, next_token_losses, update
from vpd.targets.base import Pass

VOCAB = 13
ROWS = np.random.default_rng(0).integers(0, VOCAB, (4, 9)).astype(np.int32)
CLASSES = ["LlamaSimpleMLP", "Llama", "GPT2"]


def _config(model_class: str, **sizes: object) -> PretrainingConfig:
    return PretrainingConfig.model_validate(
        {
            "target": {"model_class": model_class, "n_layer": 2, "n_head": 2, "n_embd": 8, **sizes},
            "data": {"dataset_name": "a", "tokenizer_name": "b", "max_seq_len": 9},
            "optimizer": {"lr_schedule": {"start_val": 1e-2}},
            "steps": 5,
            "batch_size": 4,
            "cadence": {"train_log_every": 1},
        }
    )


def _ran(rule: Rule, state: PretrainState, n: int) -> PretrainState:
    step = jax.jit(partial(update, rule))
    for _ in range(n):
        state, _ = step(state, jnp.asarray(ROWS[None]))
    return state


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_loss_is_that_of_next_tokens(model_class: str) -> None:
    model = fresh_model(_config(model_class), VOCAB)
    found = np.asarray(next_token_losses(model, jnp.asarray(ROWS)))
    logits = np.asarray(dense(model.forward(jnp.asarray(ROWS[:, :-1]), Pass())), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for b in range(4):
        for t in range(8):
            assert found[b, t] == pytest.approx(-log_p[b, t, ROWS[b, t + 1]], abs=1e-5)
    assert float(mean_loss(model, jnp.asarray(ROWS))) == pytest.approx(np.log(VOCAB), abs=0.05)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_against_optax(model_class: str, clip: float | None) -> None:
    """Five updates of Optax's AdamW with a mask, which was written by other people."""
    model = fresh_model(_config(model_class), VOCAB)
    lr = Schedule(1e-2, 0.4, 0.1, "cosine")
    ours = _ran(Rule(lr, 5, (0.9, 0.95), 0.5, clip), first_state(model), 5).model
    rates = [float(lr(jnp.asarray(t, jnp.int32), 5)) for t in range(5)]
    with jax.numpy_dtype_promotion("standard"):
        rule = optax.adamw(lambda n: jnp.asarray(rates)[n], 0.9, 0.95, 1e-8, weight_decay=0.5, mask=is_decayed(model))
        if clip is not None:
            rule = optax.chain(optax.clip_by_global_norm(clip), rule)
        state = rule.init(model)
        for _ in range(5):
            gradients = jax.grad(mean_loss)(model, jnp.asarray(ROWS))
            updates, state = rule.update(gradients, state, model)
            model = optax.apply_updates(model, updates)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(model), strict=True):
        # Adam divides tiny gradients by their own size: what rounding makes of those is not compared.
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("model_class", "free"),
    [
        ("LlamaSimpleMLP", {"rms_1", "rms_2", "ln_f"}),
        ("Llama", {"input_layernorm", "post_attention_layernorm", "norm"}),
        (
            "GPT2",
            {"ln_1", "ln_1_bias", "ln_2", "ln_2_bias", "ln_f", "ln_f_bias"}
            | {"c_attn_bias", "attn_proj_bias", "c_fc_bias", "mlp_proj_bias"},
        ),
    ],
)
def test_norms_and_biases_are_not_decayed(model_class: str, free: set[str]) -> None:
    model = abstract_model(_config(model_class, tie_word_embeddings=False), VOCAB)
    flags = jax.tree_util.tree_leaves_with_path(is_decayed(model))
    names = {jax.tree_util.keystr(path[-1:], simple=True): flag for path, flag in flags}
    assert {name for name, flag in names.items() if not flag} == free
    assert {"wte", "embed_tokens", "lm_head"} & {name for name, flag in names.items() if flag}


def test_recomputing_layers_changes_nothing_but_rounding() -> None:
    state = first_state(fresh_model(_config("LlamaSimpleMLP"), VOCAB))
    plain, remat = (_ran(Rule(Schedule(1e-2), 5, remat=remat), state, 3) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain.model), jax.tree.leaves(remat.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_bfloat16_keeps_float32_parameters() -> None:
    state = first_state(fresh_model(_config("Llama"), VOCAB))
    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's attention mixes its softmax with bfloat16
        narrow = _ran(Rule(Schedule(1e-2), 20, bfloat16=True), state, 20)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.model)} == {jnp.dtype("float32")}
    before, after = (float(mean_loss(s.model, jnp.asarray(ROWS))) for s in (state, narrow))
    assert after < before - 0.1


def test_sizes_are_those_of_the_file() -> None:
    config = _config("LlamaSimpleMLP", n_key_value_heads=1, n_intermediate=12, rotary_base=500.0, block_size=32)
    model = fresh_model(config, VOCAB)
    shapes = {name: shape[:2] for name, shape in model.matrices().items()}
    assert shapes["h.1.attn.k_proj"] == (8, 4) and shapes["h.0.mlp.c_fc"] == (8, 12)
    assert (model.rope_base, model.max_len, model.eps, model.lm_head) == (500.0, 32, 1e-6, None)
    assert parameter_count(model) == 13 * 8 + 8 + 2 * (2 * 8 + 2 * 64 + 2 * 32 + 2 * 96)
    assert _config("GPT2").block_size == fresh_model(_config("GPT2"), VOCAB).max_len == 8
