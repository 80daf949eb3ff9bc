"""LlamaSimpleMLP: the language model of the papers, Llama's attention with a two-matrix MLP (method.md §9)."""

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
from vpd.targets.norms import rms_norm

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class SimpleLayer(eqx.Module):
    """One layer, or a stack of layers along a first axis."""

    rms_1: Float[Array, "*stack d"]
    q_proj: Float[Array, "*stack d d"]
    k_proj: Float[Array, "*stack d d_kv"]
    v_proj: Float[Array, "*stack d d_kv"]
    o_proj: Float[Array, "*stack d d"]
    rms_2: Float[Array, "*stack d"]
    c_fc: Float[Array, "*stack d hidden"]
    down_proj: Float[Array, "*stack hidden d"]


class LlamaSimpleMLP(eqx.Module):
    """``h += o(attention(rms_1 h))``, ``h += down(gelu(c_fc(rms_2 h)))`` a layer; logits ``rms(h) @ wteᵀ``.

    Attributes:
        wte: token embedding.
        layers: under the path ``h``.
        ln_f: weight of the last norm.
        lm_head: ``[d, vocab]``; None is the transposed embedding.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        rope_base: of the rotary frequencies.
        eps: of the norms.
        max_len: longest sequence.
    """

    wte: Float[Array, "vocab d"]
    layers: Layers
    ln_f: Float[Array, " d"]
    lm_head: Float[Array, "d vocab"] | None
    n_heads: int = eqx.field(static=True)
    n_kv_heads: int = eqx.field(static=True)
    rope_base: float = eqx.field(static=True, default=10000.0)
    eps: float = eqx.field(static=True, default=1e-6)
    max_len: int = eqx.field(static=True, default=1024)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.wte.shape[0]

    def forward(self, batch: Int[Array, "B T"], seam: Seam) -> Activation:
        """Logits of the next token at every position, as a product with the head."""
        refuse_longer(batch, self.max_len)
        h = dense(seam("wte", batch, self.wte, kind="embedding"))
        h = seam.through(self.layers, (self._attention, self._mlp), h)
        head = self.wte.T if self.lm_head is None else self.lm_head
        return seam("lm_head", rms_norm(h, self.ln_f, self.eps), head, factored=True)

    def _attention(self, seam: Seam, h: Float[Array, "B T d"], layer: SimpleLayer) -> Float[Array, "B T d"]:
        x = rms_norm(h, layer.rms_1, self.eps)
        q = dense(seam("attn.q_proj", x, layer.q_proj))
        k = dense(seam("attn.k_proj", x, layer.k_proj))
        v = dense(seam("attn.v_proj", x, layer.v_proj))
        mixed = causal_attention(q, k, v, self.n_heads, self.n_kv_heads, self.rope_base)
        return h + dense(seam("attn.o_proj", mixed, layer.o_proj))

    def _mlp(self, seam: Seam, h: Float[Array, "B T d"], layer: SimpleLayer) -> Float[Array, "B T d"]:
        hidden = dense(seam("mlp.c_fc", rms_norm(h, layer.rms_2, self.eps), layer.c_fc))
        return h + dense(seam("mlp.down_proj", jax.nn.gelu(hidden, approximate=True), layer.down_proj))

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """KL(clean ‖ masked) of next-token distributions."""
        return kl(clean, masked)

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """``wte`` (lookup), ``h.i.attn.{q,k,v,o}_proj``, ``h.i.mlp.{c_fc,down_proj}``, ``lm_head``."""
        vocab, d = self.wte.shape
        found: dict[str, tuple[int, int, SiteKind]] = {"wte": (vocab, d, "embedding")}
        fields = {f"attn.{name}": name for name in ATTENTION} | {f"mlp.{name}": name for name in ("c_fc", "down_proj")}
        found |= self.layers.matrices(fields)
        found["lm_head"] = (d, vocab, "linear")
        return found


def init_simple_mlp_lm(
    vocab: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_mlp: int,
    seed: Seed,
    tied: bool = True,
    rope_base: float = 10000.0,
    eps: float = 1e-6,
    max_len: int = 1024,
) -> LlamaSimpleMLP:
    """Weights N(0, 0.02²); what is added to the stream (``o_proj``, ``down_proj``) N(0, 0.02²/(2 n_layers))."""
    d_kv = d_model // n_heads * n_kv_heads
    shapes = {
        "q_proj": (d_model, d_model),
        "k_proj": (d_model, d_kv),
        "v_proj": (d_model, d_kv),
        "o_proj": (d_model, d_model),
        "c_fc": (d_model, d_mlp),
        "down_proj": (d_mlp, d_model),
    }
    drawn = initial_layers(shapes, ("o_proj", "down_proj"), n_layers, seed)
    ones = jnp.ones((n_layers, d_model))
    return LlamaSimpleMLP(
        wte=initial("wte", (vocab, d_model), seed),
        layers=Layers((SimpleLayer(rms_1=ones, rms_2=ones, **drawn),), "h"),
        ln_f=jnp.ones(d_model),
        lm_head=None if tied else initial("lm_head", (d_model, vocab), seed),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        rope_base=rope_base,
        eps=eps,
        max_len=max_len,
    )
