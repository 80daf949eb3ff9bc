"""Toy model of superposition: ``out = relu(h Wᵀ + b)``, ``h = x W``, optionally with hidden layers between."""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vpd.decomposition.components import SiteKind
from vpd.randomness import Seed, stream
from vpd.targets.base import Seam, clean_forward


class TMS(eqx.Module):
    """The target of method.md §9. ``linear2`` is None where it is tied, that is, the transpose of ``linear1``."""

    linear1: Float[Array, "f h"]
    bias: Float[Array, " f"]
    hidden_layers: tuple[Float[Array, "h h"], ...] = ()
    linear2: Float[Array, "h f"] | None = None

    def forward(self, batch: Float[Array, "*leading f"], seam: Seam) -> Float[Array, "*leading f"]:
        """``relu(linear2(hidden_layers(linear1(x))))``, the bias on ``linear2`` only."""
        h = seam("linear1", batch, self.linear1)
        for i, weight in enumerate(self.hidden_layers):
            h = seam(f"hidden_layers.{i}", h, weight)
        out = self.linear1.T if self.linear2 is None else self.linear2
        return jax.nn.relu(seam("linear2", h, out, self.bias))

    def divergence(
        self, clean: Float[Array, "*leading f"], masked: Float[Array, "*leading f"]
    ) -> Float[Array, "*leading"]:
        """Squared error, averaged over the features."""
        return jnp.mean(jnp.square(clean.astype(jnp.float32) - masked.astype(jnp.float32)), axis=-1)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``linear1 [f, h]``, ``hidden_layers.i [h, h]``, ``linear2 [h, f]``."""
        f, h = self.linear1.shape
        hidden: dict[str, tuple[int, int, SiteKind]] = {
            f"hidden_layers.{i}": (h, h, "linear") for i in range(len(self.hidden_layers))
        }
        return {"linear1": (f, h, "linear"), **hidden, "linear2": (h, f, "linear")}


def init_tms(n_features: int, n_hidden: int, n_hidden_layers: int, seed: Seed) -> TMS:
    """Xavier-normal W, zero bias, hidden layers exactly the identity."""
    W = jax.random.normal(stream(seed, "tms/init"), (n_features, n_hidden)) * (2 / (n_features + n_hidden)) ** 0.5
    hidden = tuple(jnp.eye(n_hidden) for _ in range(n_hidden_layers))
    return TMS(linear1=W, bias=jnp.zeros(n_features), hidden_layers=hidden)


def pretrain_tms(
    model: TMS, draw: Callable[[Int[Array, ""]], Float[Array, "batch f"]], steps: int, lr: float
) -> tuple[TMS, Float[Array, ""]]:
    """Train a TMS to reconstruct its sparse inputs: AdamW, constant learning rate, weight decay 0.01.

    Hidden layers stay the identities they are, as in the published ``-id`` targets (method.md §9).

    Args:
        model: fresh, tied.
        draw: the batch of a step.
        steps: updates.
        lr: learning rate.

    Returns:
        The trained target and its mean squared error on the last batch.
    """
    optimizer = optax.adamw(lr, weight_decay=0.01)
    start = {"linear1": model.linear1, "bias": model.bias}

    def with_trained(trained: dict[str, Array]) -> TMS:
        return replace(model, **trained)

    def loss(trained: dict[str, Array], x: Float[Array, "batch f"]) -> Float[Array, ""]:
        return jnp.mean(jnp.square(clean_forward(with_trained(trained), x)[0] - x))

    def update(
        i: Int[Array, ""], carry: tuple[dict[str, Array], optax.OptState, Array]
    ) -> tuple[dict[str, Array], optax.OptState, Array]:
        trained, state, _ = carry
        value, gradients = jax.value_and_grad(loss)(trained, draw(i))
        updates, state = optimizer.update(gradients, state, trained)
        moved = jax.tree.map(jnp.add, trained, updates)
        return moved, state, value

    @jax.jit
    def run(trained: dict[str, Array], n: Int[Array, ""]) -> tuple[dict[str, Array], Array]:
        first = (trained, optimizer.init(trained), jnp.zeros(()))
        trained, _, value = jax.lax.fori_loop(jnp.zeros_like(n), n, update, first)
        return trained, value

    # optax raises a float to an integer count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        trained, value = run(start, jnp.asarray(steps, jnp.int32))
    return with_trained(trained), value
