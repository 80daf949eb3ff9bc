"""What each array of a language model is called in a file, and how it lies there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vpd.targets.checkpoint.sizes import Architecture
from vpd.targets.gpt2 import GPT2
from vpd.targets.llama import Llama
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP


class Place(NamedTuple):
    """One tensor of a file: the array it belongs to, and its layer where the array is stacked."""

    name: str
    leaf: str
    layer: int | None


@dataclass(frozen=True)
class Layout:
    """How one kind of file stores one architecture.

    Attributes:
        names: tensor by array of the model; ``{}`` stands for the number of the layer.
        transposed: the arrays that are stored ``[d_out, d_in]``.
        interleaved: whether rotary pairs are neighbours in q and k, rather than half a head apart.
        prefix: what some files leave out in front of names.
        ignored: names of buffers that hold no weights.
    """

    names: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    interleaved: bool = False
    prefix: str = ""
    ignored: re.Pattern[str] = field(default=re.compile(r"(?!)"))

    def places(self, depth: int, tied: bool) -> Iterator[Place]:
        """Every tensor of a model of so many layers."""
        for leaf, name in self.names.items():
            if leaf == "lm_head" and tied:
                continue
            if "{}" in name:
                yield from (Place(name.format(i), leaf, i) for i in range(depth))
            else:
                yield Place(name, leaf, None)

    @property
    def embedding(self) -> str:
        """Name of the token embedding, which comes first."""
        return next(iter(self.names.values()))


def _under(path: str, names: Mapping[str, str]) -> dict[str, str]:
    return {leaf: f"{path}.{{}}.{name}" for leaf, name in names.items()}


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_SWIGLU = ("gate_proj", "up_proj", "down_proj")
_HEAD = {"lm_head": "lm_head.weight"}

LLAMA = Layout(
    {"embed_tokens": "model.embed_tokens.weight"}
    | _under("model.layers", {name: f"self_attn.{name}.weight" for name in _ATTENTION})
    | _under("model.layers", {name: f"mlp.{name}.weight" for name in _SWIGLU})
    | _under("model.layers", {name: f"{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")})
    | {"norm": "model.norm.weight"}
    | _HEAD,
    transposed=frozenset((*_ATTENTION, *_SWIGLU, "lm_head")),
    prefix="model.",
    ignored=re.compile(r".*\.rotary_emb\.inv_freq"),
)

SIMPLE_MLP = Layout(
    {"wte": "wte.weight"}
    | _under("h", {name: f"attn.{name}.weight" for name in _ATTENTION})
    | _under("h", {name: f"mlp.{name}.weight" for name in ("c_fc", "down_proj")})
    | _under("h", {name: f"{name}.weight" for name in ("rms_1", "rms_2")})
    | {"ln_f": "ln_f.weight"}
    | _HEAD,
    transposed=frozenset((*_ATTENTION, "c_fc", "down_proj", "lm_head")),
    ignored=re.compile(r".*\.attn\.(bias|rotary_sin|rotary_cos|inv_freq)"),
)


def _gpt2_names() -> dict[str, str]:
    parts = {"ln_1": "ln_1", "c_attn": "attn.c_attn", "attn_proj": "attn.c_proj"}
    parts |= {"ln_2": "ln_2", "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
    weights = {leaf: f"{path}.weight" for leaf, path in parts.items()}
    return weights | {f"{leaf}_bias": f"{path}.bias" for leaf, path in parts.items()}


GPT2_NAMES = Layout(
    {"wte": "transformer.wte.weight", "wpe": "transformer.wpe.weight"}
    | _under("transformer.h", _gpt2_names())
    | {"ln_f": "transformer.ln_f.weight", "ln_f_bias": "transformer.ln_f.bias"}
    | _HEAD,
    transposed=frozenset({"lm_head"}),  # the others are stored [d_in, d_out]
    prefix="transformer.",
    ignored=re.compile(r".*\.attn\.(masked_)?bias"),
)

GGUF = Layout(
    {"embed_tokens": "token_embd.weight"}
    | _under("blk", {"q_proj": "attn_q.weight", "k_proj": "attn_k.weight", "v_proj": "attn_v.weight"})
    | _under("blk", {"o_proj": "attn_output.weight", "gate_proj": "ffn_gate.weight", "up_proj": "ffn_up.weight"})
    | _under("blk", {"down_proj": "ffn_down.weight", "input_layernorm": "attn_norm.weight"})
    | _under("blk", {"post_attention_layernorm": "ffn_norm.weight"})
    | {"norm": "output_norm.weight", "lm_head": "output.weight"},
    transposed=LLAMA.transposed,
    interleaved=True,
    ignored=re.compile(r"rope_freqs\.weight"),  # read with the sizes
)

GLASSLLM = Layout(
    {"embed_tokens": "E"}
    | _under("blocks", {name: f"attn.W_{name[0].upper()}" for name in _ATTENTION})
    | _under("blocks", {"gate_proj": "ffn.W1", "up_proj": "ffn.W3", "down_proj": "ffn.W2"})
    | _under("blocks", {"input_layernorm": "norm1.gamma", "post_attention_layernorm": "norm2.gamma"})
    | {"norm": "norm_f.gamma"},
    interleaved=True,
    ignored=re.compile(r"__config__"),
)

SAFETENSORS: Mapping[Architecture, Layout] = {LlamaSimpleMLP: SIMPLE_MLP, Llama: LLAMA, GPT2: GPT2_NAMES}
