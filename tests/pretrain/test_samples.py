"""Samples: a function of (seed, step) and the prompt, one token after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.decomposition import dense
from vpd.pretrain.samples import continuations
from vpd.targets import LlamaSimpleMLP, init_simple_mlp_lm
from vpd.targets.base import Pass

PROMPTS = [np.array([3, 1], np.int32), np.array([5, 2, 7, 1], np.int32)]


@pytest.fixture(scope="module")
def model() -> LlamaSimpleMLP:
    fresh = init_simple_mlp_lm(11, 16, 2, 2, 1, 32, seed=0, max_len=24)
    return jax.tree.map(lambda x: x * 8, fresh)  # far from uniform


def _next(model: LlamaSimpleMLP, ids: list[int]) -> np.ndarray:
    return np.asarray(dense(model.forward(jnp.asarray([ids], jnp.int32), Pass())))[0, -1]


def test_the_likeliest_tokens_one_by_one(model: LlamaSimpleMLP) -> None:
    found = continuations(model, PROMPTS, 6, 0.0, seed=0, step=3)
    for prompt, written in zip(PROMPTS, found, strict=True):
        ids = prompt.tolist()
        for token in written.tolist():
            assert token == int(_next(model, ids).argmax())
            ids.append(token)
    assert [len(written) for written in found] == [6, 6]


def test_the_same_whenever_asked(model: LlamaSimpleMLP) -> None:
    one, two = (continuations(model, PROMPTS, 12, 1.0, seed=4, step=10) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    for seed, step in ((5, 10), (4, 11)):
        other = continuations(model, PROMPTS, 12, 1.0, seed=seed, step=step)
        assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_equal_prompts_are_gone_on_with_differently(model: LlamaSimpleMLP) -> None:
    one, two = continuations(model, [PROMPTS[0]] * 2, 12, 20.0, seed=0, step=0)
    assert (one != two).any()


def test_draws_have_the_models_probabilities(model: LlamaSimpleMLP) -> None:
    n = 4000
    drawn = np.array([ids[0] for ids in continuations(model, [PROMPTS[1]] * n, 1, 0.7, seed=0, step=0)])
    logits = _next(model, PROMPTS[1].tolist()) / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    seen = np.bincount(drawn, minlength=11) / n
    assert np.abs(seen - p).max() < 5 * np.sqrt(0.25 / n)
