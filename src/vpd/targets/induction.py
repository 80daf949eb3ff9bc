"""A small attention-only transformer that repeats what it has seen: the first target with a sequence."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, dense
from vpd.decomposition.stacks import SiteKind
from vpd.randomness import Seed, stream
from vpd.targets.attention import causal_attention
from vpd.targets.base import Seam, clean_forward
from vpd.targets.divergence import kl
from vpd.targets.pretraining import Progress, fit, unseen

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
WARMUP = 0.02


class AttentionLayer(eqx.Module):
    """Query, key, value and output projections of one layer, without biases."""

    q_proj: Float[Array, "d d"]
    k_proj: Float[Array, "d d"]
    v_proj: Float[Array, "d d"]
    o_proj: Float[Array, "d d"]


class Induction(eqx.Module):
    """``h += attention(h)`` a layer, no MLPs and no norms; the head is the transposed embedding."""

    wte: Float[Array, "vocab d"]
    layers: tuple[AttentionLayer, ...]
    n_heads: int = eqx.field(static=True)
    seq_len: int = eqx.field(static=True)

    def forward(self, batch: Int[Array, "*leading T"], seam: Seam) -> Float[Array, "*leading T vocab"]:
        """Logits of the next token at every position."""
        h = dense(seam("wte", batch, self.wte, kind="embedding"))
        for i, layer in enumerate(self.layers):
            q, k, v = (
                dense(seam(f"h.{i}.attn.{name}", h, getattr(layer, name))) for name in ("q_proj", "k_proj", "v_proj")
            )
            mixed = causal_attention(q, k, v, self.n_heads)
            h = h + dense(seam(f"h.{i}.attn.o_proj", mixed, layer.o_proj))
        return dense(seam("lm_head", h, self.wte.T))

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """KL(clean ‖ masked) of next-token distributions."""
        return kl(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``wte [vocab, d]`` (lookup), ``h.i.attn.{q,k,v,o}_proj [d, d]``, ``lm_head [d, vocab]``."""
        vocab, d = self.wte.shape
        found: dict[str, tuple[int, int, SiteKind]] = {"wte": (vocab, d, "embedding")}
        for i in range(len(self.layers)):
            found |= {f"h.{i}.attn.{name}": (d, d, "linear") for name in PROJECTIONS}
        found["lm_head"] = (d, vocab, "linear")
        return found


def init_induction(vocab: int, d_model: int, n_layers: int, n_heads: int, seq_len: int, seed: Seed) -> Induction:
    """Embedding N(0, 1/d_model), projections N(0, 1/d_model).

    Args:
        vocab: number of tokens.
        d_model: width of the residual stream.
        n_layers: number of layers.
        n_heads: heads a layer; d_model is a multiple, each head's width even.
        seq_len: of the sequences it is trained on.
        seed: of the weights.
    """
    scale = d_model**-0.5
    wte = jax.random.normal(stream(seed, "induction/wte"), (vocab, d_model)) * scale
    layers: list[AttentionLayer] = []
    for i in range(n_layers):
        keys = jax.random.split(stream(seed, f"induction/layer{i}"), len(PROJECTIONS))
        layers.append(AttentionLayer(*(jax.random.normal(key, (d_model, d_model)) * scale for key in keys)))
    return Induction(wte, tuple(layers), n_heads, seq_len)


def pretrain_induction(
    model: Induction,
    draw: Callable[[Int[Array, ""]], Int[Array, "batch T"]],
    steps: int,
    lr: float,
    progress: Progress = unseen,
) -> tuple[Induction, Float[Array, ""]]:
    """Train on the cross-entropy of next tokens: AdamW, 2 % warm-up, cosine to 0, weight decay 0.01.

    Args:
        model: fresh.
        draw: the batch of a step.
        steps: updates.
        lr: highest learning rate.
        progress: called with the steps made.

    Returns:
        The trained target and its cross-entropy on the last batch.
    """

    def loss(trained: Induction, i: Int[Array, ""]) -> Float[Array, ""]:
        tokens = draw(i)
        logits, _ = clean_forward(trained, tokens)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]))

    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, int(WARMUP * steps)), steps)
    return fit(model, loss, steps, schedule, progress)
