"""Toy model of superposition: ``out = relu(h Wᵀ + b)``, ``h = x W``, optionally with hidden layers between."""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, dense
from vpd.decomposition.stacks import SiteKind
from vpd.randomness import Seed, stream
from vpd.targets.base import Seam, clean_forward
from vpd.targets.divergence import squared_error
from vpd.targets.pretraining import Progress, fit, unseen


class TMS(eqx.Module):
    """The target of method.md §9. ``linear2`` is None where it is tied, that is, the transpose of ``linear1``."""

    linear1: Float[Array, "f h"]
    bias: Float[Array, " f"]
    hidden_layers: tuple[Float[Array, "h h"], ...] = ()
    linear2: Float[Array, "h f"] | None = None

    @property
    def n_features(self) -> int:
        """Width of input and output."""
        return self.linear1.shape[0]

    def forward(self, batch: Float[Array, "*leading f"], seam: Seam) -> Float[Array, "*leading f"]:
        """``relu(linear2(hidden_layers(linear1(x))))``, the bias on ``linear2`` only."""
        h = seam("linear1", batch, self.linear1)
        for i, weight in enumerate(self.hidden_layers):
            h = seam(f"hidden_layers.{i}", h, weight)
        out = self.linear1.T if self.linear2 is None else self.linear2
        return jax.nn.relu(dense(seam("linear2", h, out, self.bias)))

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """Squared error, averaged over the features."""
        return squared_error(clean, masked)

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
    model: TMS,
    draw: Callable[[Int[Array, ""]], Float[Array, "batch f"]],
    steps: int,
    lr: float,
    progress: Progress = unseen,
) -> tuple[TMS, Float[Array, ""]]:
    """Train a TMS to reconstruct its sparse inputs: AdamW, constant learning rate, weight decay 0.01.

    Hidden layers stay the identities they are, as in the published ``-id`` targets (method.md §9).

    Args:
        model: fresh, tied.
        draw: the batch of a step.
        steps: updates.
        lr: learning rate.
        progress: called with the steps made.

    Returns:
        The trained target and its mean squared error on the last batch.
    """
    start = {"linear1": model.linear1, "bias": model.bias}

    def loss(trained: dict[str, Array], i: Int[Array, ""]) -> Float[Array, ""]:
        x = draw(i)
        return jnp.mean(jnp.square(clean_forward(replace(model, **trained), x)[0] - x))

    trained, value = fit(start, loss, steps, lr, progress)
    return replace(model, **trained), value
