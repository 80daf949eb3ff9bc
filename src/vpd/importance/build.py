"""From a run file's `ci_config` to a fresh causal-importance function."""

from collections.abc import Sequence

from jaxtyping import Array, Key

from vpd.config.importance import CIConfig, GlobalMLPCI, LayerwiseCI
from vpd.decomposition import Site
from vpd.importance.mlp import CIFunction, init_global_mlp, init_layerwise_mlp


def init_ci_function(config: CIConfig, sites: Sequence[Site], key: Key[Array, ""]) -> CIFunction:
    """Fresh CI function for the sites, in their numeric layer order."""
    match config:
        case LayerwiseCI():
            return init_layerwise_mlp(config.fn_type, sites, config.hidden_dims, key)
        case GlobalMLPCI():
            return init_global_mlp(sites, config.hidden_dims, key)
        case _:
            raise NotImplementedError(f"{config.fn_type} is refused when the run file is read")
