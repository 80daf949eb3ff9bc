"""Llama: rotary grouped-query attention and SwiGLU, from 135M to 8B parameters (method.md §9)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vpd.decomposition import Activation, SiteKind, dense
from vpd.randomness import Seed
from vpd.rotary import Scaling
from vpd.targets.attention import causal_attention, refuse_longer
from vpd.targets.base import Seam
from vpd.targets.divergence import kl
from vpd.targets.initial import initial, initial_layers
from vpd.targets.layers import Layers
from vpd.targets.norms import rms_norm

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class LlamaLayer(eqx.Module):
    """One layer, or a stack of layers along a first axis."""

    input_layernorm: Float[Array, "*stack d"]
    q_proj: Float[Array, "*stack d d_q"]
    k_proj: Float[Array, "*stack d d_kv"]
    v_proj: Float[Array, "*stack d d_kv"]
    o_proj: Float[Array, "*stack d_q d"]
    post_attention_layernorm: Float[Array, "*stack d"]
    gate_proj: Float[Array, "*stack d hidden"]
    up_proj: Float[Array, "*stack d hidden"]
    down_proj: Float[Array, "*stack hidden d"]


class Llama(eqx.Module):
    """``h += o(attention(x))``, ``h += down(silu(gate x) · up x)``, ``x = norm h``, a layer; logits ``norm(h) @ head``.

    Attributes:
        embed_tokens: token embedding.
        layers: under the path ``model.layers``.
        norm: weight of the last norm.
        lm_head: ``[d, vocab]``; None is the transposed embedding.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        rope_base: of the rotary frequencies.
        scaling: of the rotary frequencies, as Llama 3.1 has it.
        eps: of the norms.
        max_len: longest sequence.
    """

    embed_tokens: Float[Array, "vocab d"]
    layers: Layers
    norm: Float[Array, " d"]
    lm_head: Float[Array, "d vocab"] | None
    n_heads: int = eqx.field(static=True)
    n_kv_heads: int = eqx.field(static=True)
    rope_base: float = eqx.field(static=True, default=10000.0)
    scaling: Scaling | None = eqx.field(static=True, default=None)
    eps: float = eqx.field(static=True, default=1e-5)
    max_len: int = eqx.field(static=True, default=2048)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.embed_tokens.shape[0]

    def forward(self, batch: Int[Array, "B T"], seam: Seam) -> Activation:
        """Logits of the next token at every position, as a product with the head."""
        refuse_longer(batch, self.max_len)
        h = dense(seam("model.embed_tokens", batch, self.embed_tokens, kind="embedding"))
        h = seam.through(self.layers, (self._attention, self._mlp), h)
        head = self.embed_tokens.T if self.lm_head is None else self.lm_head
        return seam("lm_head", rms_norm(h, self.norm, self.eps), head, factored=True)

    def _attention(self, seam: Seam, h: Float[Array, "B T d"], layer: LlamaLayer) -> Float[Array, "B T d"]:
        x = rms_norm(h, layer.input_layernorm, self.eps)
        q = dense(seam("self_attn.q_proj", x, layer.q_proj))
        k = dense(seam("self_attn.k_proj", x, layer.k_proj))
        v = dense(seam("self_attn.v_proj", x, layer.v_proj))
        mixed = causal_attention(q, k, v, self.n_heads, self.n_kv_heads, self.rope_base, self.scaling)
        return h + dense(seam("self_attn.o_proj", mixed, layer.o_proj))

    def _mlp(self, seam: Seam, h: Float[Array, "B T d"], layer: LlamaLayer) -> Float[Array, "B T d"]:
        x = rms_norm(h, layer.post_attention_layernorm, self.eps)
        gate = dense(seam("mlp.gate_proj", x, layer.gate_proj))
        up = dense(seam("mlp.up_proj", x, layer.up_proj))
        return h + dense(seam("mlp.down_proj", jax.nn.silu(gate) * up, layer.down_proj))

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """KL(clean ‖ masked) of next-token distributions."""
        return kl(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``model.embed_tokens`` (lookup), under ``model.layers.i`` ``{self_attn,mlp}.*_proj``, ``lm_head``."""
        vocab, d = self.embed_tokens.shape
        found: dict[str, tuple[int, int, SiteKind]] = {"model.embed_tokens": (vocab, d, "embedding")}
        fields = {f"self_attn.{name}": name for name in ATTENTION} | {f"mlp.{name}": name for name in MLP}
        found |= self.layers.matrices(fields)
        found["lm_head"] = (d, vocab, "linear")
        return found


def init_llama(
    vocab: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_mlp: int,
    seed: Seed,
    tied: bool = True,
    head_dim: int | None = None,
    rope_base: float = 10000.0,
    scaling: Scaling | None = None,
    eps: float = 1e-5,
    max_len: int = 2048,
) -> Llama:
    """Weights N(0, 0.02²); what is added to the stream (``o_proj``, ``down_proj``) N(0, 0.02²/(2 n_layers)).

    Args:
        vocab: number of tokens.
        d_model: width of the stream.
        n_layers: depth.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        d_mlp: width of the MLP.
        seed: of the draws.
        tied: whether the head is the transposed embedding.
        head_dim: width of a head; None is ``d_model / n_heads``.
        rope_base: of the rotary frequencies.
        scaling: of the rotary frequencies.
        eps: of the norms.
        max_len: longest sequence.
    """
    d_head = head_dim or d_model // n_heads
    d_q, d_kv = n_heads * d_head, n_kv_heads * d_head
    shapes = {
        "q_proj": (d_model, d_q),
        "k_proj": (d_model, d_kv),
        "v_proj": (d_model, d_kv),
        "o_proj": (d_q, d_model),
        "gate_proj": (d_model, d_mlp),
        "up_proj": (d_model, d_mlp),
        "down_proj": (d_mlp, d_model),
    }
    drawn = initial_layers(shapes, ("o_proj", "down_proj"), n_layers, seed)
    ones = jnp.ones((n_layers, d_model))
    return Llama(
        embed_tokens=initial("wte", (vocab, d_model), seed),
        layers=Layers((LlamaLayer(input_layernorm=ones, post_attention_layernorm=ones, **drawn),), "model.layers"),
        norm=jnp.ones(d_model),
        lm_head=None if tied else initial("lm_head", (d_model, vocab), seed),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        rope_base=rope_base,
        scaling=scaling,
        eps=eps,
        max_len=max_len,
    )
