"""The network of a pretraining file before it is trained."""

from functools import partial

import jax
from jaxtyping import Array, PyTree

from vpd.config.pretraining import FreshGPT2, FreshLlama, FreshSimpleMLP, PretrainingConfig
from vpd.targets import LanguageModel, init_gpt2, init_llama, init_simple_mlp_lm


def fresh_model(config: PretrainingConfig, vocab: int) -> LanguageModel:
    """Random float32 weights, a function of the file's seed.

    Args:
        config: the pretraining file.
        vocab: number of tokens.
    """
    sizes, length = config.target, config.block_size
    match sizes:
        case FreshSimpleMLP() | FreshLlama():
            make = init_simple_mlp_lm if isinstance(sizes, FreshSimpleMLP) else init_llama
            return make(
                vocab,
                sizes.n_embd,
                sizes.n_layer,
                sizes.n_head,
                sizes.kv_heads,
                sizes.hidden,
                config.seed,
                tied=sizes.tie_word_embeddings,
                rope_base=sizes.rotary_base,
                eps=sizes.norm_eps,
                max_len=length,
            )
        case FreshGPT2():
            return init_gpt2(
                vocab,
                sizes.n_embd,
                sizes.n_layer,
                sizes.n_head,
                config.seed,
                d_mlp=sizes.hidden,
                tied=sizes.tie_word_embeddings,
                eps=sizes.norm_eps,
                max_len=length,
            )


def abstract_model(config: PretrainingConfig, vocab: int) -> LanguageModel:
    """Its shapes and types; nothing is allocated."""
    return jax.eval_shape(partial(fresh_model, config, vocab))


def is_decayed(model: LanguageModel) -> PyTree[bool]:
    """Which parameters have weight decay: matrices and embeddings, not norms and biases.

    The arrays of layers are stacked, so that a vector of a layer has two axes.
    """

    def decays(path: tuple[object, ...], leaf: Array | jax.ShapeDtypeStruct) -> bool:
        stacked = "layers" in jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(decays, model)


def parameter_count(model: LanguageModel) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))
