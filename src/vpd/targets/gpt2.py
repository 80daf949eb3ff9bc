"""GPT-2: learned positions, LayerNorm, queries, keys and values as one matrix (method.md §9)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, SiteKind, dense
from vpd.randomness import Seed
from vpd.targets.attention import causal_attention, refuse_longer
from vpd.targets.base import Seam
from vpd.targets.divergence import kl
from vpd.targets.initial import initial, initial_layers
from vpd.targets.layers import Layers
from vpd.targets.norms import layer_norm

# Paths of a layer's matrices and the fields that hold them, in the order of the forward pass.
MATRICES = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}


class GPT2Layer(eqx.Module):
    """One layer, or a stack of layers along a first axis; ``c_attn`` holds queries, keys and values side by side."""

    ln_1: Float[Array, "*stack d"]
    ln_1_bias: Float[Array, "*stack d"]
    c_attn: Float[Array, "*stack d qkv"]
    c_attn_bias: Float[Array, "*stack qkv"]
    attn_proj: Float[Array, "*stack d d"]
    attn_proj_bias: Float[Array, "*stack d"]
    ln_2: Float[Array, "*stack d"]
    ln_2_bias: Float[Array, "*stack d"]
    c_fc: Float[Array, "*stack d hidden"]
    c_fc_bias: Float[Array, "*stack hidden"]
    mlp_proj: Float[Array, "*stack hidden d"]
    mlp_proj_bias: Float[Array, "*stack d"]


class GPT2(eqx.Module):
    """``h += c_proj(attention(ln_1 h))``, ``h += c_proj(gelu(c_fc(ln_2 h)))`` a layer; logits ``ln_f(h) @ head``.

    The gelu is the tanh approximation.

    Attributes:
        wte: token embedding.
        wpe: embedding of positions; its length is the longest sequence.
        layers: under the path ``transformer.h``.
        ln_f: weight of the last norm.
        ln_f_bias: its bias.
        lm_head: ``[d, vocab]``; None is the transposed embedding.
        n_heads: attention heads.
        eps: of the norms.
    """

    wte: Float[Array, "vocab d"]
    wpe: Float[Array, "max_len d"]
    layers: Layers
    ln_f: Float[Array, " d"]
    ln_f_bias: Float[Array, " d"]
    lm_head: Float[Array, "d vocab"] | None
    n_heads: int = eqx.field(static=True)
    eps: float = eqx.field(static=True, default=1e-5)

    @property
    def max_len(self) -> int:
        """Longest sequence."""
        return self.wpe.shape[0]

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.wte.shape[0]

    def forward(self, batch: Int[Array, "B T"], seam: Seam) -> Activation:
        """Logits of the next token at every position, as a product with the head."""
        refuse_longer(batch, self.max_len)
        places = jnp.broadcast_to(jnp.arange(batch.shape[1]), batch.shape)
        h = dense(seam("transformer.wte", batch, self.wte, kind="embedding"))
        h = h + dense(seam("transformer.wpe", places, self.wpe, kind="embedding"))
        h = seam.through(self.layers, (self._attention, self._mlp), h)
        head = self.wte.T if self.lm_head is None else self.lm_head
        return seam("lm_head", layer_norm(h, self.ln_f, self.ln_f_bias, self.eps), head, factored=True)

    def _attention(self, seam: Seam, h: Float[Array, "B T d"], layer: GPT2Layer) -> Float[Array, "B T d"]:
        x = layer_norm(h, layer.ln_1, layer.ln_1_bias, self.eps)
        q, k, v = jnp.split(dense(seam("attn.c_attn", x, layer.c_attn, layer.c_attn_bias)), 3, axis=-1)
        mixed = causal_attention(q, k, v, self.n_heads, base=None)
        return h + dense(seam("attn.c_proj", mixed, layer.attn_proj, layer.attn_proj_bias))

    def _mlp(self, seam: Seam, h: Float[Array, "B T d"], layer: GPT2Layer) -> Float[Array, "B T d"]:
        x = layer_norm(h, layer.ln_2, layer.ln_2_bias, self.eps)
        hidden = dense(seam("mlp.c_fc", x, layer.c_fc, layer.c_fc_bias))
        return h + dense(seam("mlp.c_proj", jax.nn.gelu(hidden, approximate=True), layer.mlp_proj, layer.mlp_proj_bias))

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """KL(clean ‖ masked) of next-token distributions."""
        return kl(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``transformer.wte``, ``.wpe`` (lookups), ``transformer.h.i.{attn,mlp}.*``, ``lm_head``."""
        vocab, d = self.wte.shape
        found: dict[str, tuple[int, int, SiteKind]] = {
            "transformer.wte": (vocab, d, "embedding"),
            "transformer.wpe": (self.max_len, d, "embedding"),
        }
        found |= self.layers.matrices(MATRICES)
        found["lm_head"] = (d, vocab, "linear")
        return found


def init_gpt2(
    vocab: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    seed: Seed,
    d_mlp: int | None = None,
    tied: bool = True,
    eps: float = 1e-5,
    max_len: int = 1024,
) -> GPT2:
    """Weights N(0, 0.02²), both ``c_proj`` N(0, 0.02²/(2 n_layers)), biases 0 (Radford et al. 2019).

    Args:
        vocab: number of tokens.
        d_model: width of the stream.
        n_layers: depth.
        n_heads: attention heads.
        seed: of the draws.
        d_mlp: width of the MLP; None is ``4 · d_model``.
        tied: whether the head is the transposed embedding.
        eps: of the norms.
        max_len: longest sequence.
    """
    hidden = d_mlp or 4 * d_model
    shapes = {
        "c_attn": (d_model, 3 * d_model),
        "attn_proj": (d_model, d_model),
        "c_fc": (d_model, hidden),
        "mlp_proj": (hidden, d_model),
    }
    drawn = initial_layers(shapes, ("attn_proj", "mlp_proj"), n_layers, seed)
    widths = {"ln_1": d_model, "ln_2": d_model} | {name: d_out for name, (_, d_out) in shapes.items()}
    biases = {f"{name}_bias": jnp.zeros((n_layers, width)) for name, width in widths.items()}
    ones = jnp.ones((n_layers, d_model))
    return GPT2(
        wte=initial("wte", (vocab, d_model), seed),
        wpe=initial("wpe", (max_len, d_model), seed),
        layers=Layers((GPT2Layer(ln_1=ones, ln_2=ones, **drawn, **biases),), "transformer.h"),
        ln_f=jnp.ones(d_model),
        ln_f_bias=jnp.zeros(d_model),
        lm_head=None if tied else initial("lm_head", (d_model, vocab), seed),
        n_heads=n_heads,
        eps=eps,
    )
