"""Residual MLP on sparse features: ``out = r W_Eᵀ``, ``r = x W_E + Σ act(r W_in + b_in) W_out + b_out``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, Factored, dense
from vpd.decomposition.factored import plus
from vpd.decomposition.stacks import SiteKind
from vpd.randomness import Seed, stream
from vpd.targets.base import Seam, clean_forward
from vpd.targets.divergence import squared_error
from vpd.targets.pretraining import Progress, fit, unseen

ActFn = Literal["gelu", "relu"]


def activate(x: Float[Array, "*any"], name: ActFn) -> Float[Array, "*any"]:
    """The exact (erf) GELU, or ReLU."""
    return jax.nn.gelu(x, approximate=False) if name == "gelu" else jax.nn.relu(x)


class Layer(eqx.Module):
    """What one layer adds to the residual stream."""

    mlp_in: Float[Array, "d_embed d_mlp"]
    mlp_out: Float[Array, "d_mlp d_embed"]
    in_bias: Float[Array, " d_mlp"] | None = None
    out_bias: Float[Array, " d_embed"] | None = None


class ResidMLP(eqx.Module):
    """The target of method.md §9. ``W_E`` is fixed, and its transpose reads the output."""

    W_E: Float[Array, "f d_embed"]
    layers: tuple[Layer, ...]
    act_fn_name: ActFn = eqx.field(static=True)

    @property
    def n_features(self) -> int:
        """Width of input and output."""
        return self.W_E.shape[0]

    def forward(self, batch: Float[Array, "*leading f"], seam: Seam) -> Float[Array, "*leading f"]:
        """The residual stream stays a sum of products: it is only ever multiplied."""
        residual: Activation = Factored(((batch, self.W_E),))
        for i, layer in enumerate(self.layers):
            hidden = dense(seam(f"layers.{i}.mlp_in", residual, layer.mlp_in, layer.in_bias))
            hidden = activate(hidden, self.act_fn_name)
            added = seam(f"layers.{i}.mlp_out", hidden, layer.mlp_out, layer.out_bias, factored=True)
            residual = plus(residual, added)
        return residual @ self.W_E.T

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """Squared error, averaged over the features."""
        return squared_error(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``layers.i.mlp_in [d_embed, d_mlp]``, ``layers.i.mlp_out [d_mlp, d_embed]``."""
        found: dict[str, tuple[int, int, SiteKind]] = {}
        for i, layer in enumerate(self.layers):
            d_embed, d_mlp = layer.mlp_in.shape
            found[f"layers.{i}.mlp_in"] = (d_embed, d_mlp, "linear")
            found[f"layers.{i}.mlp_out"] = (d_mlp, d_embed, "linear")
        return found


def init_resid_mlp(
    n_features: int,
    d_embed: int,
    d_mlp: int,
    n_layers: int,
    act_fn_name: ActFn,
    in_bias: bool = False,
    out_bias: bool = False,
    fixed_identity_embedding: bool = False,
    seed: Seed = 0,
) -> ResidMLP:
    """Random unit rows (or the identity) in ``W_E``; matrices N(0, 1/d_in), biases zero.

    Args:
        n_features: width of input and output.
        d_embed: width of the residual stream.
        d_mlp: neurons a layer.
        n_layers: number of layers.
        act_fn_name: ``gelu`` or ``relu``.
        in_bias: whether ``mlp_in`` has a bias.
        out_bias: whether ``mlp_out`` has a bias.
        fixed_identity_embedding: the identity as ``W_E``; needs ``n_features == d_embed``.
        seed: of the weights.
    """
    if fixed_identity_embedding:
        rows = jnp.eye(n_features)
    else:
        rows = jax.random.normal(stream(seed, "resid_mlp/W_E"), (n_features, d_embed))
        rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    layers: list[Layer] = []
    for i in range(n_layers):
        key_in, key_out = jax.random.split(stream(seed, f"resid_mlp/layer{i}"))
        layers.append(
            Layer(
                mlp_in=jax.random.normal(key_in, (d_embed, d_mlp)) * d_embed**-0.5,
                mlp_out=jax.random.normal(key_out, (d_mlp, d_embed)) * d_mlp**-0.5,
                in_bias=jnp.zeros(d_mlp) if in_bias else None,
                out_bias=jnp.zeros(d_embed) if out_bias else None,
            )
        )
    return ResidMLP(rows, tuple(layers), act_fn_name)


def pretrain_resid_mlp(
    model: ResidMLP,
    draw: Callable[[Int[Array, ""]], Float[Array, "batch f"]],
    steps: int,
    lr: float,
    progress: Progress = unseen,
) -> tuple[ResidMLP, Float[Array, ""]]:
    """Train a ResidMLP towards ``x + act(x)``: AdamW, cosine learning rate to 0, weight decay 0.01; ``W_E`` stays.

    Args:
        model: fresh.
        draw: the batch of a step.
        steps: updates.
        lr: learning rate at the start.
        progress: called with the steps made.

    Returns:
        The trained target and its mean squared error on the last batch.
    """

    def loss(layers: tuple[Layer, ...], i: Int[Array, ""]) -> Float[Array, ""]:
        x = draw(i)
        out, _ = clean_forward(replace(model, layers=layers), x)
        return jnp.mean(jnp.square(out - (x + activate(x, model.act_fn_name))))

    layers, value = fit(model.layers, loss, steps, optax.cosine_decay_schedule(lr, steps), progress)
    return replace(model, layers=layers), value
