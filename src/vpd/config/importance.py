"""Causal-importance functions as a run file describes them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vpd.config.block import Block, problem
from vpd.config.values import Count, Positive, Words

HiddenDims = Annotated[tuple[Count, ...], Words("a list of integers >= 1", [16])]

_NEEDS_HIDDEN = ("mlp", "vector_mlp")


class Attention(Block):
    """Attention of a transformer CI function."""

    n_heads: Annotated[Count, Field(examples=[8])]
    """Attention heads; divides `d_model` into even head sizes."""
    max_len: Annotated[Count, Field(examples=[512])] = 2048
    """Longest sequence the function takes."""
    rope_base: Positive = 10000.0
    """Base of the rotary frequencies."""


def _four_times_d_model(data: dict[str, object]) -> tuple[int, ...]:
    d_model = data["d_model"]
    assert isinstance(d_model, int)
    return (4 * d_model,)


class SimpleTransformer(Block):
    """Size of a transformer CI function."""

    d_model: Annotated[Count, Field(examples=[512])]
    """Width of the residual stream."""
    n_blocks: Annotated[Count, Field(examples=[4])]
    """Number of blocks."""
    mlp_hidden_dim: HiddenDims = Field(default_factory=_four_times_d_model)
    """Hidden widths of each block's MLP; [4 * d_model] when not given."""
    attn_config: Attention
    """Attention of each block."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        heads = self.attn_config.n_heads
        if self.d_model % (2 * heads):
            raise problem(
                "attn_config.n_heads",
                f"{heads} heads don't divide d_model {self.d_model} into even head sizes, which RoPE needs",
                "write a d_model that is a multiple of 2 * n_heads",
            )
        return self


class LayerwiseCI(Block):
    """One small network per subcomponent or per site, on that site alone."""

    inactive_keys = frozenset({"simple_transformer_ci_cfg", "sites_per_chunk"})

    mode: Literal["layerwise"]
    """Each site is judged by itself."""
    fn_type: Literal["mlp", "vector_mlp", "shared_mlp"]
    """Per subcomponent on `x @ V`, per subcomponent on the site input, or one per site."""
    hidden_dims: HiddenDims
    """Hidden widths; at least one for mlp and vector_mlp."""

    @model_validator(mode="after")
    def _has_a_hidden_layer(self) -> Self:
        if self.fn_type in _NEEDS_HIDDEN and not self.hidden_dims:
            raise problem(
                "hidden_dims",
                f"fn_type {self.fn_type} needs at least one hidden layer, got []",
                "write for example hidden_dims: [16]",
            )
        return self


class GlobalMLPCI(Block):
    """One MLP on the concatenated inputs of all sites."""

    inactive_keys = frozenset({"simple_transformer_ci_cfg", "sites_per_chunk"})

    mode: Literal["global"]
    """All sites are judged together."""
    fn_type: Literal["global_shared_mlp"]
    """An MLP whose output is split per site."""
    hidden_dims: HiddenDims
    """Hidden widths; may be empty."""


class GlobalTransformerCI(Block):
    """One bidirectional transformer on the concatenated inputs of all sites."""

    inactive_keys = frozenset({"hidden_dims", "sites_per_chunk"})

    mode: Literal["global"]
    """All sites are judged together."""
    fn_type: Literal["global_shared_transformer"]
    """A transformer whose output is split per site."""
    simple_transformer_ci_cfg: SimpleTransformer
    """Its size."""


class ChunkwiseTransformerCI(Block):
    """One bidirectional transformer for each chunk of consecutive sites."""

    inactive_keys = frozenset({"hidden_dims"})

    mode: Literal["chunkwise"]
    """Chunks of sites are judged together."""
    fn_type: Literal["chunkwise_transformer"]
    """A transformer per chunk, all of one size."""
    sites_per_chunk: Annotated[Count, Field(examples=[6])]
    """Consecutive sites in a chunk."""
    simple_transformer_ci_cfg: SimpleTransformer
    """Size of each transformer."""


CIConfig = Annotated[
    LayerwiseCI | GlobalMLPCI | GlobalTransformerCI | ChunkwiseTransformerCI,
    Field(discriminator="fn_type"),
]
