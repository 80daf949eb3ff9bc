"""The toy model of superposition: its forward pass, its start and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal, tms, uniform

from vpd.data.features import single_features, sparse_features
from vpd.randomness import stream
from vpd.targets import clean_forward, frozen_weights, init_tms, pretrain_tms
from vpd.targets.weights import load_target, target_bytes


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("untied", [False, True])
def test_the_forward_pass(hidden: int, untied: bool) -> None:
    target, x = tms(hidden, untied=untied), uniform(3, 4)
    out, inputs = clean_forward(target, x)
    h = np.asarray(x) @ np.asarray(target.linear1)
    for i, weight in enumerate(target.hidden_layers):
        np.testing.assert_allclose(inputs[f"hidden_layers.{i}"], h, rtol=1e-5, atol=1e-6)
        h = h @ np.asarray(weight)
    np.testing.assert_allclose(inputs["linear2"], h, rtol=1e-5, atol=1e-6)
    last = np.asarray(target.linear2) if untied else np.asarray(target.linear1).T
    np.testing.assert_allclose(out, np.maximum(h @ last + np.asarray(target.bias), 0), rtol=1e-4, atol=1e-5)
    names = ["linear1", *(f"hidden_layers.{i}" for i in range(hidden)), "linear2"]
    assert list(target.matrices()) == list(frozen_weights(target, x)) == names
    assert list(inputs) == [site for name in names for site in (f"{name}.pre_identity", name)]
    for name, weight in frozen_weights(target, x).items():
        assert target.matrices()[name] == (*weight.shape, "linear")


def test_layers_are_in_numeric_order() -> None:
    names = list(tms(12, f=2, h=1).matrices())
    assert names[1:-1] == [f"hidden_layers.{i}" for i in range(12)]


def test_divergence_is_the_mean_squared_error_in_float32() -> None:
    clean, masked = normal(5, 4).astype(jnp.bfloat16), normal(5, 4, key=1).astype(jnp.bfloat16)
    got = tms().divergence(clean, masked)
    assert got.shape == (5,) and got.dtype == jnp.float32
    want = np.square(np.asarray(clean, np.float32) - np.asarray(masked, np.float32)).mean(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_start() -> None:
    start = jit(lambda seed: init_tms(300, 100, 2, seed))
    target = start(np.int32(0))
    np.testing.assert_allclose(np.std(target.linear1), (2 / 400) ** 0.5, rtol=0.03)
    assert not np.asarray(target.bias).any() and target.linear2 is None
    for layer in target.hidden_layers:
        np.testing.assert_array_equal(layer, np.eye(100))
    assert (np.asarray(start(np.int32(1)).linear1) != target.linear1).mean() > 0.99


def test_training_reconstructs_features_and_keeps_identities(tmp_path) -> None:
    fresh = init_tms(3, 2, 1, seed=0)

    def draw(step):
        return sparse_features(stream(0, "data/pretrain", step), (64,), 3, 0.2)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        trained, error = pretrain_tms(fresh, draw, 300, 0.02)
    probe = single_features(3)
    before, after = (np.mean((np.asarray(clean_forward(t, probe)[0]) - probe) ** 2) for t in (fresh, trained))
    assert after < 0.5 * before and error < 0.05
    np.testing.assert_array_equal(trained.hidden_layers[0], np.eye(2))
    assert np.asarray(trained.bias).any() and trained.linear2 is None
    (tmp_path / "target.safetensors").write_bytes(target_bytes(trained))
    read = load_target(tmp_path / "target.safetensors")
    for x, y in zip(jax.tree.leaves(trained), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(x, y)


def test_features() -> None:
    @jit
    def draw(seed):
        key = jax.random.key(seed)
        return (
            sparse_features(key, (4000,), 5, 0.1),
            sparse_features(key, (4000,), 5, 0.1, "exactly_one_active", low=-1.0),
        )

    (many, one), (other, _) = draw(np.int32(0)), draw(np.int32(1))
    many, one = np.asarray(many), np.asarray(one)
    assert abs((many != 0).mean() - 0.1) < 4 * (0.09 / many.size) ** 0.5
    assert many.min() == 0 and many.max() <= 1
    np.testing.assert_allclose(many[many != 0].mean(), 0.5, rtol=0.05)
    assert ((one != 0).sum(1) == 1).all()
    assert np.abs((one != 0).mean(0) - 0.2).max() < 0.03 and one.min() < -0.9 and one.max() > 0.9
    assert (np.asarray(other) != many).any()
    np.testing.assert_array_equal(single_features(3, 0.5), 0.5 * np.eye(3))
