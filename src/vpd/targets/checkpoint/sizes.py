"""A language model's sizes, between the values of its ``config.json`` and its abstract arrays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from vpd.errors import RunError
from vpd.rotary import Scaling
from vpd.targets.gpt2 import GPT2, init_gpt2
from vpd.targets.language_model import LanguageModel
from vpd.targets.llama import Llama, init_llama
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP, init_simple_mlp_lm

Values = Mapping[str, object]
Architecture = type[LlamaSimpleMLP] | type[Llama] | type[GPT2]

CLASSES: Mapping[str, Architecture] = {
    "LlamaSimpleMLP": LlamaSimpleMLP,
    "Llama": Llama,
    "LlamaForCausalLM": Llama,
    "GPT2": GPT2,
    "GPT2LMHeadModel": GPT2,
}
_MODEL_TYPES: Mapping[str, Architecture] = {"llamasimplemlp": LlamaSimpleMLP, "llama": Llama, "gpt2": GPT2}


def named_architecture(name: str) -> Architecture:
    """The class that a run file names, alone or with the path of its package before it.

    Raises:
        RunError: where there is no such class.
    """
    last = name.rsplit(".", 1)[-1]
    if last not in CLASSES:
        raise RunError(f"model_class {name!r} is no architecture that vpd has; its last word is one of {_known()}")
    return CLASSES[last]


def _known() -> str:
    return ", ".join(CLASSES)


def architecture(values: Values, model_class: str | None = None, where: str = "config.json") -> Architecture:
    """What ``model_class``, ``model_type`` or ``architectures`` say, which must agree.

    Raises:
        RunError: where nothing says it, something unknown does, or they disagree.
    """
    asked = None if model_class is None else named_architecture(model_class)
    said = _said(values, where)
    if asked is not None and said is not None and asked is not said:
        raise RunError(
            f"{where} describes a {said.__name__}, and model_class is {model_class!r}; write {said.__name__}"
        )
    found = asked or said
    if found is None:
        raise RunError(f"{where} does not say which architecture it describes; write model_type, or give a model_class")
    return found


def _said(values: Values, where: str) -> Architecture | None:
    told = values.get("model_type")
    if told is None:
        named = values.get("architectures")
        told = named[0] if isinstance(named, list) and named else None
        return None if told is None else named_architecture(str(told))
    folded = str(told).lower().replace("_", "").replace("-", "")
    if folded not in _MODEL_TYPES:
        raise RunError(f"{where} describes a {told!r}, and vpd reads llama, gpt2 and llama_simple_mlp")
    return _MODEL_TYPES[folded]


def abstract_language_model(
    values: Values, model_class: str | None = None, dtype: str = "float32", where: str = "config.json"
) -> LanguageModel:
    """The model that a ``config.json`` describes, its arrays shapes and types alone (``jax.ShapeDtypeStruct``).

    Args:
        values: of the file, in the spelling of transformers or of the papers' LlamaSimpleMLP.
        model_class: the architecture, where the file does not say it.
        dtype: of the arrays.
        where: what the values are called in messages.

    Raises:
        RunError: where a value is missing, does not fit the others, or asks for what the architecture has not.
    """
    kind, read = architecture(values, model_class, where), _Reader(values, where)
    if kind is Llama:
        make = _llama(read)
    elif kind is GPT2:
        make = _gpt2(read)
    else:
        make = _simple_mlp(read)
    wide = jax.eval_shape(make)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), wide)


@dataclass(frozen=True)
class _Reader:
    """Values under any of their spellings, refused where they are missing or of another kind."""

    values: Values
    where: str

    def number(self, *names: str, default: int | float | None = None) -> float:
        """A positive number."""
        name, found = self._first(names, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
            raise RunError(f"{self.where} has {name} {found!r}; it must be a positive number")
        return float(found)

    def count(self, *names: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self.number(*names, default=default)
        if found != int(found):
            raise RunError(f"{self.where} has {names[0]} {found}; it must be a whole number")
        return int(found)

    def flag(self, *names: str, default: bool) -> bool:
        """True or false."""
        name, found = self._first(names, default)
        if not isinstance(found, bool):
            raise RunError(f"{self.where} has {name} {found!r}; it must be true or false")
        return found

    def needs(self, name: str, *allowed: object) -> None:
        """Refuse a value under which the forward pass is another one; it may be absent."""
        found = self.values.get(name)
        if found is not None and found not in allowed:
            raise RunError(
                f"{self.where} has {name} {found!r}, and vpd computes {' or '.join(map(repr, allowed))} alone"
            )

    def _first(self, names: tuple[str, ...], default: object) -> tuple[str, object]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        if default is None:
            raise RunError(f"{self.where} has no {' (or '.join(names)}{')' * (len(names) - 1)}, which the model needs")
        return names[0], default

    def heads(self, width: int, n_heads: int, n_kv_heads: int, name: str = "width") -> None:
        """Refuse heads that don't divide what they share."""
        if width % n_heads or n_heads % n_kv_heads:
            raise RunError(
                f"{self.where} has {n_heads} heads and {n_kv_heads} key heads, which don't divide {name} {width}"
            )

    def turns(self, head_dim: int) -> None:
        """Refuse an odd head, which rotary positions can't turn."""
        if head_dim % 2:
            raise RunError(f"{self.where} has heads of odd width {head_dim}, and rotary positions need an even one")


def _llama(read: _Reader) -> "partial[Llama]":
    for name, allowed in {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}.items():
        read.needs(name, *allowed)
    d_model, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    n_kv_heads = read.count("num_key_value_heads", default=n_heads)
    if read.values.get("head_dim") is None:
        read.heads(d_model, n_heads, n_kv_heads)
    else:
        read.heads(n_heads, n_heads, n_kv_heads, "number")
    head_dim = read.count("head_dim", default=d_model // n_heads)
    read.turns(head_dim)
    base, scaling = _rotary(read)
    return partial(
        init_llama,
        vocab=read.count("vocab_size"),
        d_model=d_model,
        n_layers=read.count("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_mlp=read.count("intermediate_size"),
        seed=0,
        tied=read.flag("tie_word_embeddings", default=False),
        head_dim=head_dim,
        rope_base=base,
        scaling=scaling,
        eps=read.number("rms_norm_eps"),
        max_len=read.count("max_position_embeddings"),
    )


def _rotary(read: _Reader) -> tuple[float, Scaling | None]:
    """Base and scaling: ``rope_theta`` and ``rope_scaling``, or both in ``rope_parameters`` (transformers 5)."""
    both = _block(read, "rope_parameters")
    scaling = both or _block(read, "rope_scaling")
    base = _Reader({**read.values, **both}, read.where).number("rope_theta", default=10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise RunError(f"{read.where} scales rotary positions by {kind!r}, and vpd reads 'llama3' or none")
    own = _Reader(scaling, f"rope_scaling of {read.where}")
    low, high = own.number("low_freq_factor"), own.number("high_freq_factor")
    if low >= high:
        raise RunError(f"{own.where} has low_freq_factor {low:g}, which must be below high_freq_factor {high:g}")
    length = own.count("original_max_position_embeddings")
    return base, Scaling(own.number("factor"), low, high, length)


def _block(read: _Reader, name: str) -> dict[str, object]:
    found = read.values.get(name) or {}
    if not isinstance(found, Mapping):
        raise RunError(f"{read.where} has {name} {found!r}; it must be a block of values")
    return {str(key): value for key, value in found.items()}


def _gpt2(read: _Reader) -> "partial[GPT2]":
    read.needs("activation_function", "gelu_new", "gelu_pytorch_tanh")
    read.needs("scale_attn_weights", True)
    read.needs("scale_attn_by_inverse_layer_idx", False)
    d_model, n_heads = read.count("n_embd"), read.count("n_head")
    read.heads(d_model, n_heads, n_heads)
    return partial(
        init_gpt2,
        vocab=read.count("vocab_size"),
        d_model=d_model,
        n_layers=read.count("n_layer"),
        n_heads=n_heads,
        seed=0,
        d_mlp=read.count("n_inner", default=4 * d_model),
        tied=read.flag("tie_word_embeddings", default=True),
        eps=read.number("layer_norm_epsilon", default=1e-5),
        max_len=read.count("n_positions", "n_ctx"),
    )


def _simple_mlp(read: _Reader) -> "partial[LlamaSimpleMLP]":
    for name in ("mlp_bias", "attn_bias", "rotary_adjacent_pairs"):
        read.needs(name, False)
    read.needs("use_grouped_query_attention", True)
    d_model, n_heads = read.count("n_embd", "hidden_size"), read.count("n_head", "num_attention_heads")
    n_kv_heads = read.count("n_key_value_heads", "num_key_value_heads")
    read.heads(d_model, n_heads, n_kv_heads)
    read.turns(d_model // n_heads)
    read.needs("rotary_dim", d_model // n_heads)
    return partial(
        init_simple_mlp_lm,
        vocab=read.count("vocab_size"),
        d_model=d_model,
        n_layers=read.count("n_layer", "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_mlp=read.count("n_intermediate", "intermediate_size"),
        seed=0,
        tied=read.flag("tie_word_embeddings", default=True),
        rope_base=read.number("rotary_base", "rope_theta"),
        eps=read.number("rms_norm_eps", default=1e-6),
        max_len=read.count("block_size", "n_ctx", "max_position_embeddings"),
    )


def config_values(model: LanguageModel) -> dict[str, object]:
    """The inverse of :func:`abstract_language_model`: what ``config.json`` says of a model."""
    match model:
        case Llama():
            return _llama_values(model)
        case GPT2():
            (vocab, d), inner = model.wte.shape, model.layers.runs[0].c_fc.shape[-1]
            return {
                "architectures": ["GPT2LMHeadModel"],
                "model_type": "gpt2",
                "activation_function": "gelu_new",
                "vocab_size": vocab,
                "n_positions": model.max_len,
                "n_embd": d,
                "n_layer": model.layers.depth,
                "n_head": model.n_heads,
                "n_inner": inner,
                "layer_norm_epsilon": model.eps,
                "tie_word_embeddings": model.lm_head is None,
            }
        case LlamaSimpleMLP():
            vocab, d = model.wte.shape
            return {
                "architectures": ["LlamaSimpleMLP"],
                "model_type": "llama_simple_mlp",
                "vocab_size": vocab,
                "block_size": model.max_len,
                "n_embd": d,
                "n_layer": model.layers.depth,
                "n_head": model.n_heads,
                "n_key_value_heads": model.n_kv_heads,
                "n_intermediate": model.layers.runs[0].c_fc.shape[-1],
                "rotary_base": model.rope_base,
                "rms_norm_eps": model.eps,
                "tie_word_embeddings": model.lm_head is None,
            }


def _llama_values(model: Llama) -> dict[str, object]:
    (vocab, d), stack = model.embed_tokens.shape, model.layers.runs[0]
    values: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": vocab,
        "hidden_size": d,
        "intermediate_size": stack.gate_proj.shape[-1],
        "num_hidden_layers": model.layers.depth,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": stack.q_proj.shape[-1] // model.n_heads,
        "max_position_embeddings": model.max_len,
        "rms_norm_eps": model.eps,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.lm_head is None,
    }
    if model.scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": model.scaling.factor,
            "low_freq_factor": model.scaling.low_freq_factor,
            "high_freq_factor": model.scaling.high_freq_factor,
            "original_max_position_embeddings": model.scaling.original_length,
        }
    return values
