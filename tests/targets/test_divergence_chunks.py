"""Cross-entropy and KL of a vocabulary wider than a chunk: values and gradients are those of the dense logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import normal

from vpd.decomposition import Factored, dense
from vpd.targets import divergence
from vpd.targets.divergence import cross_entropy, kl

CHUNK = 8
VOCABULARIES = [16, 17, 20, 31]  # even chunks, and last ones that begin early


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "CHUNK", CHUNK)


def logits(vocab: int, key: int, terms: int = 1, dtype: str = "float32") -> Factored:
    return Factored(
        tuple(
            (
                normal(2, 5, 3, key=key + 2 * i).astype(dtype),
                (2.0 * normal(3, vocab, key=key + 2 * i + 1)).astype(dtype),
            )
            for i in range(terms)
        )
    )


def tokens(vocab: int) -> jax.Array:
    """Every chunk is met, its first and last token among others."""
    chosen = [0, vocab - 1, vocab // 2, CHUNK - 1, CHUNK, vocab - 2, 1, 3, vocab - 3, vocab // 3]
    return jnp.asarray(np.array(chosen, np.int32).reshape(2, 5))


def dense_ce(x: Factored, following: jax.Array) -> np.ndarray:
    z = np.asarray(dense(x).astype(jnp.float32), np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(following)[..., None], -1)[..., 0]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_cross_entropy(vocab: int, terms: int) -> None:
    x = logits(vocab, 1, terms)
    assert divergence._chunks(vocab)[0] > 1
    np.testing.assert_allclose(cross_entropy(x, tokens(vocab)), dense_ce(x, tokens(vocab)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_gradient_of_cross_entropy(vocab: int) -> None:
    x = logits(vocab, 1)
    following, weights = tokens(vocab), normal(2, 5, key=9)

    def loss(x: Factored, whole: bool) -> jax.Array:
        return jnp.sum(weights * cross_entropy(dense(x) if whole else x, following))

    got, want = (jax.grad(lambda x, w=whole: loss(x, w))(x) for whole in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    assert all(np.abs(g).max() > 1e-2 for g in jax.tree.leaves(want))


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_kl_and_its_gradient(vocab: int) -> None:
    clean, masked, weights = logits(vocab, 1), logits(vocab, 5, terms=2), normal(2, 5, key=9)

    def loss(masked: Factored, whole: bool) -> tuple[jax.Array, jax.Array]:
        value = kl(dense(clean), dense(masked)) if whole else kl(clean, masked)
        return jnp.sum(weights * value), value

    (got, value), (want, whole) = (
        jax.grad(lambda m, w=whole: loss(m, w), has_aux=True)(masked) for whole in (False, True)
    )
    np.testing.assert_allclose(value, whole, rtol=1e-5, atol=1e-5)
    assert np.asarray(whole).min() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_kl_is_of_the_masked_from_the_clean() -> None:
    """Σ p (log p − log q) with p the clean side, and 0 for equal logits."""
    clean, masked = logits(20, 1), logits(20, 5)
    log_p, log_q = (np.asarray(jax.nn.log_softmax(dense(x))) for x in (clean, masked))
    want = np.sum(np.exp(log_p) * (log_p - log_q), -1)
    np.testing.assert_allclose(kl(clean, masked), want, rtol=1e-5)
    assert np.abs(want - np.sum(np.exp(log_q) * (log_q - log_p), -1)).max() > 0.1
    np.testing.assert_allclose(kl(clean, clean), 0.0, atol=1e-6)


@pytest.mark.parametrize("vocab", [17, 20])
def test_bfloat16_is_summed_in_float32(vocab: int) -> None:
    clean, masked = logits(vocab, 1, dtype="bfloat16"), logits(vocab, 5, dtype="bfloat16")
    ce, far = cross_entropy(clean, tokens(vocab)), kl(clean, masked)
    assert ce.dtype == far.dtype == jnp.float32
    np.testing.assert_allclose(ce, dense_ce(clean, tokens(vocab)), rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(far, kl(dense(clean), dense(masked)), rtol=1e-4, atol=1e-4)


def test_large_logits_stay_finite() -> None:
    x = Factored(tuple((100.0 * z, basis) for z, basis in logits(20, 1).terms))
    assert np.isfinite(cross_entropy(x, tokens(20))).all() and np.isfinite(kl(x, logits(20, 5))).all()
