"""The residual MLP: its forward pass on a stream that is never formed, its sites, its start and its training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import filled, jit, normal
from scipy.special import erf

from vpd.config.targets import FeatureData, ResidMLPTarget, TMSTarget
from vpd.data.build import feature_batches
from vpd.decomposition import dense
from vpd.targets import ResidMLP, clean_forward, frozen_weights, init_resid_mlp, pretrain_resid_mlp
from vpd.targets.build import fresh_target

F, D, H = 5, 7, 3


def network(n_layers: int = 2, act: str = "gelu", biases: bool = True, d_embed: int = D, **changes: object) -> ResidMLP:
    """A random one, biases and embedding included."""
    make = partial(init_resid_mlp, F, d_embed, H, n_layers, act, biases, biases, **changes)  # type: ignore[arg-type]
    return filled(lambda _: make())


def activated(x: np.ndarray, act: str) -> np.ndarray:
    return np.maximum(x, 0) if act == "relu" else x * (1 + erf(x / np.sqrt(2))) / 2


def by_hand(target: ResidMLP, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output and the input of every matrix, in float64, with the stream formed."""
    W_E = np.asarray(target.W_E, np.float64)
    stream, inputs = x.astype(np.float64) @ W_E, {}
    for i, layer in enumerate(target.layers):
        inputs[f"layers.{i}.mlp_in"] = stream
        hidden = stream @ np.asarray(layer.mlp_in, np.float64)
        hidden = activated(hidden if layer.in_bias is None else hidden + np.asarray(layer.in_bias), target.act_fn_name)
        inputs[f"layers.{i}.mlp_out"] = hidden
        added = hidden @ np.asarray(layer.mlp_out, np.float64)
        stream = stream + (added if layer.out_bias is None else added + np.asarray(layer.out_bias))
    return stream @ W_E.T, inputs


@pytest.mark.parametrize(
    ("n_layers", "act", "biases", "d_embed", "leading"),
    [
        (1, "gelu", False, D, (4,)),
        (2, "relu", True, D, (4,)),
        (3, "gelu", True, 40, (4,)),  # a stream wider than all that is added to it stays factored
        (2, "gelu", True, 40, (300,)),
        (1, "relu", True, 2, (2, 3)),
    ],
)
def test_the_forward_pass(n_layers: int, act: str, biases: bool, d_embed: int, leading: tuple[int, ...]) -> None:
    target, x = network(n_layers, act, biases, d_embed), normal(*leading, F)
    out, inputs = jit(clean_forward)(target, x)
    want, want_inputs = by_hand(target, np.asarray(x))
    scale = np.abs(want).max()
    np.testing.assert_allclose(out / scale, want / scale, atol=2e-6)
    assert [name for name in inputs if "pre_identity" not in name] == list(want_inputs) == list(target.matrices())
    for name, value in want_inputs.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(dense(inputs[name]) / scale, value / scale, atol=2e-6)
        assert inputs[name].shape == value.shape
        np.testing.assert_array_equal(dense(inputs[f"{name}.pre_identity"]), dense(inputs[name]))


@pytest.mark.parametrize(
    ("block", "sites"),
    [
        (ResidMLPTarget, [f"layers.{i}.{part}" for i in range(12) for part in ("mlp_in", "mlp_out")]),
        (TMSTarget, ["linear1", *(f"hidden_layers.{i}" for i in range(12)), "linear2"]),
    ],
)
def test_matrices_are_those_of_the_run_file_in_numeric_order(block: type, sites: list[str]) -> None:
    """Of both toys on features."""
    own = {"d_embed": D, "d_mlp": H, "n_layers": 12, "act_fn_name": "relu", "in_bias": True, "out_bias": False}
    own |= {"fixed_identity_embedding": False}
    tms = {"n_hidden": H, "n_hidden_layers": 12}
    pretrain = {"steps": 1, "batch_size": 1, "lr": 0.1}
    config = block.model_validate({"n_features": F, "pretrain": pretrain} | (own if block is ResidMLPTarget else tms))
    target = jax.eval_shape(lambda: fresh_target(config))
    assert {name: (a, b) for name, (a, b, _) in target.matrices().items()} == config.site_shapes
    assert list(target.matrices()) == list(config.site_shapes) == sites
    weights = jax.eval_shape(frozen_weights, target, jax.ShapeDtypeStruct((2, F), jnp.float32))
    assert {name: w.shape for name, w in weights.items()} == config.site_shapes


def test_divergence_is_the_mean_squared_error() -> None:
    clean, masked = normal(6, F), normal(6, F, key=1)
    want = ((np.asarray(clean) - np.asarray(masked)) ** 2).mean(-1)
    np.testing.assert_allclose(network().divergence(clean, masked), want, rtol=1e-6)


def test_start() -> None:
    start = jit(lambda seed: init_resid_mlp(50, 100, 80, 2, "gelu", True, True, seed=seed))
    target, other = start(np.int32(0)), start(np.int32(1))
    np.testing.assert_allclose(np.linalg.norm(target.W_E, axis=1), 1.0, rtol=1e-5)
    for layer in target.layers:
        np.testing.assert_allclose(np.std(layer.mlp_in), 100**-0.5, rtol=0.05)
        np.testing.assert_allclose(np.std(layer.mlp_out), 80**-0.5, rtol=0.05)
        assert not np.asarray(layer.in_bias).any() and not np.asarray(layer.out_bias).any()
        assert layer.in_bias.shape == (80,) and layer.out_bias.shape == (100,)
    assert (np.asarray(target.layers[0].mlp_in) != target.layers[1].mlp_in).mean() > 0.99
    assert (np.asarray(other.W_E) != target.W_E).mean() > 0.99
    plain = init_resid_mlp(4, 4, 2, 1, "relu", fixed_identity_embedding=True)
    np.testing.assert_array_equal(plain.W_E, np.eye(4))
    assert plain.layers[0].in_bias is None and plain.layers[0].out_bias is None


def test_training_learns_repeats_itself_and_keeps_the_embedding() -> None:
    data = FeatureData(feature_probability=0.3)
    draw = partial(feature_batches(data, F, 64, "pretrain", low=-1.0), jnp.uint32(0))
    fresh = init_resid_mlp(F, 16, 10, 2, "relu", True, True)
    trained, loss = pretrain_resid_mlp(fresh, draw, 150, 0.01)
    again, _ = pretrain_resid_mlp(fresh, draw, 150, 0.01)
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    np.testing.assert_array_equal(trained.W_E, fresh.W_E)
    x = np.asarray(draw(jnp.int32(1000)))
    assert x.min() < -0.9 and x.max() > 0.9
    before, after = (np.mean((by_hand(t, x)[0] - (x + np.maximum(x, 0))) ** 2) for t in (fresh, trained))
    assert after < 0.3 * before
    assert 0.3 * after < float(loss) < 3 * after
    assert np.asarray(trained.layers[1].in_bias).any() and np.asarray(trained.layers[1].out_bias).any()
