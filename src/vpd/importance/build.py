"""From a run file's `ci_config` to a fresh causal-importance function."""

from collections.abc import Sequence

from jaxtyping import Array, Key

from vpd.config.importance import (
    ChunkwiseTransformerCI,
    CIConfig,
    GlobalMLPCI,
    GlobalTransformerCI,
    LayerwiseCI,
    SimpleTransformer,
)
from vpd.decomposition import Site
from vpd.importance.mlp import CIFunction, init_global_mlp, init_layerwise_mlp
from vpd.importance.transformer import Size, init_transformer


def init_ci_function(config: CIConfig, sites: Sequence[Site], key: Key[Array, ""]) -> CIFunction:
    """Fresh CI function for the sites, in their numeric layer order."""
    match config:
        case LayerwiseCI():
            return init_layerwise_mlp(config.fn_type, sites, config.hidden_dims, key)
        case GlobalMLPCI():
            return init_global_mlp(sites, config.hidden_dims, key)
        case GlobalTransformerCI():
            return init_transformer(sites, size_from(config.simple_transformer_ci_cfg), key)
        case ChunkwiseTransformerCI():
            size = size_from(config.simple_transformer_ci_cfg)
            return init_transformer(sites, size, key, config.sites_per_chunk)


def size_from(config: SimpleTransformer) -> Size:
    """The size of a transformer that a run file describes."""
    attention = config.attn_config
    return Size(
        config.d_model,
        config.n_blocks,
        config.mlp_hidden_dim,
        attention.n_heads,
        attention.max_len,
        attention.rope_base,
    )
