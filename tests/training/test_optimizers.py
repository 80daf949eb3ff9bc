"""AdamW and Muon against optax, and the clip of the global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective.scenes import components_of, jit, normal
from optax import contrib

from vpd.decomposition import Site
from vpd.importance import init_global_mlp, init_layerwise_mlp
from vpd.importance.mlp import Affine
from vpd.objective import Schedule
from vpd.training.optimizers import AdamW, Muon, split_matrices

STEPS = 20
PARAMS = {"a": normal(3, 4), "b": {"c": normal(5)}}
GRADIENTS = {"a": normal(STEPS, 3, 4), "b": {"c": normal(STEPS, 5)}}


def trajectory(optimizer: AdamW | Muon):
    """Parameters after each of the steps, and the norms."""

    @jit
    def run(params):
        def body(carry, given):
            params, moments = carry
            step, gradients = given
            params, moments, norm = optimizer.update(params, gradients, moments, step, STEPS)
            return (params, moments), (params, norm)

        return jax.lax.scan(body, (params, optimizer.init(params)), (jnp.arange(STEPS, dtype=jnp.int32), GRADIENTS))[1]

    return run(PARAMS)


def by_optax(schedule: Schedule, betas: tuple[float, float], decay: float):
    transformation = optax.adamw(
        lambda step: schedule(step, STEPS), b1=betas[0], b2=betas[1], eps=1e-8, weight_decay=decay
    )

    @jit
    def run(params):
        def body(carry, gradients):
            params, state = carry
            updates, state = transformation.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(body, (params, transformation.init(params)), GRADIENTS)[1]

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        return run(PARAMS)


@pytest.mark.parametrize(
    ("schedule", "betas", "decay"),
    [
        (Schedule(0.01), (0.9, 0.999), 0.0),
        (Schedule(0.02, 0.2, 0.1, "cosine"), (0.5, 0.99), 0.1),
        (Schedule(0.02, 0.0, 0.0, "linear"), (0.0, 0.9), 0.01),
    ],
)
def test_equals_optax(schedule: Schedule, betas: tuple[float, float], decay: float) -> None:
    got, _ = trajectory(AdamW(schedule, betas, decay))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(by_optax(schedule, betas, decay)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=2e-6)


def test_the_norm_is_global_and_before_clipping() -> None:
    _, norms = trajectory(AdamW(Schedule(0.01), clip_norm=0.1))
    want = np.sqrt(sum((np.asarray(g).reshape(STEPS, -1) ** 2).sum(1) for g in jax.tree.leaves(GRADIENTS)))
    np.testing.assert_allclose(norms, want, rtol=1e-5)


def test_clipping_scales_by_the_smaller_of_1_and_c_over_norm() -> None:
    """With β₁ = 0 the first moment is the clipped gradient."""
    optimizer = AdamW(Schedule(0.1), betas=(0.0, 0.9), clip_norm=1.0)

    @jit
    def clipped(gradients):
        return optimizer.update(gradients, gradients, optimizer.init(gradients), jnp.zeros((), jnp.int32), STEPS)

    for size in (1e-7, 0.5, 1.0, 3.0):
        gradients = {"a": np.float32([0.6 * size, 0.0]), "b": np.float32([0.8 * size])}
        _, moments, norm = clipped(jax.tree.map(jnp.asarray, gradients))
        np.testing.assert_allclose(norm, size, rtol=1e-5)
        scale = min(1.0, 1.0 / (size + 1e-6))
        np.testing.assert_allclose(moments.m["a"], [0.6 * size * scale, 0.0], rtol=1e-5)
        np.testing.assert_allclose(moments.v["b"], [0.1 * (0.8 * size * scale) ** 2], rtol=1e-4)


def test_a_rate_of_zero_moves_nothing_but_moments() -> None:
    optimizer = AdamW(Schedule(0.1, warmup_pct=0.5), weight_decay=0.3)
    gradients = jax.tree.map(lambda g: g[0], GRADIENTS)
    params, moments, _ = optimizer.update(PARAMS, gradients, optimizer.init(PARAMS), jnp.zeros((), jnp.int32), STEPS)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.asarray(v).any() for v in jax.tree.leaves(moments))


def test_muon_equals_optax_on_matrices_and_adamw_on_the_rest() -> None:
    schedule, betas, decay = Schedule(0.02, 0.2, 0.1, "cosine"), (0.8, 0.99), 0.1
    transformation = contrib.muon(lambda step: schedule(step, STEPS), beta=betas[0], weight_decay=decay)

    @jit
    def run(a):
        def body(carry, gradient):
            a, state = carry
            updates, state = transformation.update(gradient, state, a)
            return (a + updates, state), a + updates

        return jax.lax.scan(body, (a, transformation.init(a)), GRADIENTS["a"])[1]

    with jax.numpy_dtype_promotion("standard"):
        want = run(PARAMS["a"])
    got, _ = trajectory(Muon(schedule, betas, decay))
    np.testing.assert_allclose(got["a"], want, rtol=1e-5, atol=1e-5)
    by_adamw, _ = trajectory(AdamW(schedule, betas, decay))
    np.testing.assert_allclose(got["b"]["c"], by_adamw["b"]["c"], rtol=1e-5, atol=1e-6)


SITE = Site("a", 6, 3, C=5)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (4, 10, 7)])
def test_muon_moves_matrices_by_orthogonal_ones(shape: tuple[int, ...]) -> None:
    """The quintic iteration ends between 0.68 and 1.14, whatever the singular values were."""
    params, gradients = {"W": jnp.zeros(shape)}, {"W": 1e-3 * normal(*shape)}
    optimizer = Muon(Schedule(0.01), ns_steps=10)
    moved, _, _ = jit(lambda g: optimizer.update(params, g, optimizer.init(params), jnp.zeros((), jnp.int32), STEPS))(
        gradients
    )
    direction = -np.asarray(moved["W"]) / 0.01 / max(1, shape[-1] / shape[-2]) ** 0.5
    values = np.linalg.svd(direction, compute_uv=False)
    assert values.min() > 0.65 and values.max() < 1.2
    # Along the gradient: the inner product with the nearest orthogonal matrix is nearly the largest possible.
    u, _, vt = np.linalg.svd(np.asarray(gradients["W"]), full_matrices=False)
    assert (direction * (u @ vt)).sum() > 0.8 * (u @ vt * (u @ vt)).sum()


@pytest.mark.parametrize(
    ("params", "matrices"),
    [
        (components_of((SITE,)), {"owned.a.V", "owned.a.U"}),
        (Affine(normal(5, 6, 4), normal(5, 4)), {"W"}),
        (init_layerwise_mlp("mlp", (SITE,), (7,), jax.random.key(0)), set()),
        (init_layerwise_mlp("vector_mlp", (SITE,), (7,), jax.random.key(0)), {"sites.a.hidden.0.W"}),
        (init_global_mlp((SITE,), (7,), jax.random.key(0)), {"mlp.hidden.0.W", "mlp.out.W"}),
    ],
)
def test_what_muon_takes_for_a_matrix(params, matrices: set[str]) -> None:
    named = jax.tree_util.tree_flatten_with_path(split_matrices(params)[0])[0]
    assert {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named} == matrices


def test_muon_clips_decays_and_rests_as_adamw_does() -> None:
    gradients = jax.tree.map(lambda g: g[0], GRADIENTS)
    rest = Muon(Schedule(0.1, warmup_pct=0.5), weight_decay=0.3, clip_norm=0.1)
    zero = jnp.zeros((), jnp.int32)

    @jit
    def update(optimizer_step, gradients):
        return rest.update(PARAMS, gradients, rest.init(PARAMS), optimizer_step, STEPS)

    params, moments, norm = update(zero, gradients)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(norm, optax.tree.norm(gradients), rtol=1e-6)
    np.testing.assert_allclose(moments.m["a"], 0.1 * gradients["a"] * 0.1 / norm, rtol=1e-4)
    assert moments.v["a"] is None and np.asarray(moments.v["b"]["c"]).any()
    update(zero + 7, gradients)
    assert update._cache_size() == 1  # the schedule moves without another program
