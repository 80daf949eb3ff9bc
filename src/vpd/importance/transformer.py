"""Transformer causal-importance functions: one over all sites, or one for each chunk of consecutive sites."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vpd.decomposition import ComponentSet, Site, members_in_order, trained_product
from vpd.importance.mlp import (
    UNROLLED,
    Affine,
    SiteInputs,
    SiteMLP,
    affine,
    init_affine,
    init_layers,
    input_width,
    joined_sites,
    read_site,
    site_mlp,
    split_sites,
)
from vpd.placement import along_batch, parts_of_columns
from vpd.rotary import rotate

RMS_EPS = 2.0**-23


@dataclass(frozen=True)
class Size:
    """What a run file fixes of a transformer.

    Attributes:
        d_model: width of the residual stream.
        n_blocks: number of blocks.
        mlp_hidden: hidden widths of each block's MLP.
        n_heads: divides ``d_model`` into even head sizes.
        max_len: longest sequence.
        rope_base: base of the rotary frequencies.
    """

    d_model: int
    n_blocks: int
    mlp_hidden: tuple[int, ...]
    n_heads: int
    max_len: int = 2048
    rope_base: float = 10000.0


class Block(eqx.Module):
    """Attention and MLP of one block, or of a stack of blocks along leading axes."""

    q: Float[Array, "*stack d d"]
    k: Float[Array, "*stack d d"]
    v: Float[Array, "*stack d d"]
    o: Float[Array, "*stack d d"]
    mlp: SiteMLP


class Transformer(eqx.Module):
    """A pre-norm bidirectional transformer without a final norm.

    Attributes:
        embed: input projection, no nonlinearity after it.
        blocks: stacked along their first axis and scanned, so that the program does not grow with their number.
        head: output projection.
        n_heads: attention heads, consecutive slices of the output of q, k and v.
        rope_base: base of the rotary frequencies, which are constants.
    """

    embed: Affine
    blocks: Block
    head: Affine
    n_heads: int = eqx.field(static=True)
    rope_base: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "B T d_in"]) -> Float[Array, "B T d_out"]:
        """``embed``, then in each block ``h += o(attention(rms(h)))`` and ``h += mlp(rms(h))``, then ``head``."""

        def block(h: Float[Array, "B T d"], parameters: Block) -> tuple[Float[Array, "B T d"], None]:
            h = along_batch(h + self._attention(parameters, rms_norm(h)))
            return along_batch(h + site_mlp(parameters.mlp, rms_norm(h))), None

        n_blocks = self.blocks.q.shape[0]
        # So few blocks are written out, which spares their stacks of what the backward pass needs.
        unroll = n_blocks if n_blocks <= UNROLLED else 1
        h, _ = jax.lax.scan(block, along_batch(affine(self.embed, x)), self.blocks, unroll=unroll)
        return self._headed(h)

    def _headed(self, h: Float[Array, "B T d"]) -> Float[Array, "B T d_out"]:
        """``head``, the widest matrix of all: where parameters are split, parts of its outputs one after the other."""
        parts = parts_of_columns()
        W, b = (jnp.array_split(x, parts, axis=-1) for x in (self.head.W, self.head.b))
        outputs = [along_batch(affine(Affine(*part), h)) for part in zip(W, b, strict=True)]
        return outputs[0] if parts == 1 else jnp.concatenate(outputs, axis=-1)

    def _attention(self, block: Block, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        B, T, d = x.shape
        q, k, v = (trained_product(x, W).reshape(B, T, self.n_heads, -1) for W in (block.q, block.k, block.v))
        with jax.numpy_dtype_promotion("standard"):  # it takes a softmax of bfloat16 in float32
            mixed = jax.nn.dot_product_attention(rotate(q, self.rope_base), rotate(k, self.rope_base), v)
        return trained_product(mixed.reshape(B, T, d), block.o)


def rms_norm(x: Float[Array, "*leading d"]) -> Float[Array, "*leading d"]:
    """``x / √(mean x² + 2⁻²³)`` in float32, without a weight."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + RMS_EPS)).astype(x.dtype)


class TransformerCI(eqx.Module):
    """Transformers over consecutive chunks of the sites, of equal shapes and run as one; a single chunk is them all.

    Each site input is RMS-normalised by itself, a lookup site contributes ``V[x]``. Chunks narrower than the widest are
    padded with zeros, whose weights start at 0 and get no gradient. Without a sequence axis a singleton one is added
    and removed.

    Attributes:
        networks: stacked along their first axis, one for each chunk.
        sites: in numeric layer order.
        per_chunk: consecutive matrices in a chunk, fewer in the last one; None is one network over all.
        max_len: longest sequence.
    """

    networks: Transformer
    sites: tuple[Site, ...] = eqx.field(static=True)
    per_chunk: int | None = eqx.field(static=True)
    max_len: int = eqx.field(static=True)

    def __call__(self, inputs: SiteInputs, components: ComponentSet) -> dict[str, Float[Array, "..."]]:
        """``{site: x [*leading, d_in]}`` to ``{site: z [*leading, C]}``; ValueError beyond ``max_len``."""
        read = {
            s.name: rms_norm(read_site(inputs[s.name], components[s.name], s.kind == "embedding")) for s in self.sites
        }
        chunks = chunk_widths(self.sites, self.per_chunk)
        x = _in_chunks(joined_sites(read, self.sites), [width for width, _ in chunks], self.networks.embed.W.shape[-2])
        has_sequence = x.ndim == 4
        if has_sequence and x.shape[2] > self.max_len:
            raise ValueError(
                f"a sequence of {x.shape[2]} positions is longer than max_len {self.max_len} of the transformer CI "
                f"function; shorten it, or train with attn_config.max_len {x.shape[2]} or more"
            )
        x = x if has_sequence else x[:, :, None]
        z = jax.vmap(lambda network, x: network(x))(self.networks, x)
        z = z if has_sequence else z[:, :, 0]
        return split_sites(_from_chunks(z, [C for _, C in chunks]), self.sites)


def chunk_widths(sites: Sequence[Site], per_chunk: int | None) -> list[tuple[int, int]]:
    """Of each chunk, the width of what it reads and its number of subcomponents."""
    single = [(input_width(site), site.C) for site, _, _ in members_in_order(sites)]
    n = per_chunk or len(single)
    chunks = [single[i : i + n] for i in range(0, len(single), n)]
    return [(sum(d for d, _ in chunk), sum(C for _, C in chunk)) for chunk in chunks]


def _in_chunks(x: Float[Array, "*leading all"], widths: Sequence[int], width: int) -> Float[Array, "chunks *leading _"]:
    """Consecutive parts of the last axis along a first one, padded to the same width."""
    if len(widths) == 1:
        return x[None]
    if all(own == width for own in widths):
        return jnp.moveaxis(x.reshape(*x.shape[:-1], len(widths), width), -2, 0)
    parts = jnp.split(x, list(accumulate(widths))[:-1], axis=-1)
    return jnp.stack([jnp.pad(p, [(0, 0)] * (x.ndim - 1) + [(0, width - p.shape[-1])]) for p in parts])


def _from_chunks(z: Float[Array, "chunks *leading _"], widths: Sequence[int]) -> Float[Array, "*leading all"]:
    """The inverse of :func:`_in_chunks`, padding left out."""
    if len(widths) == 1:
        return z[0]
    if all(own == z.shape[-1] for own in widths):
        z = jnp.moveaxis(z, 0, -2)
        return z.reshape(*z.shape[:-2], -1)
    return jnp.concatenate([part[..., :own] for part, own in zip(z, widths, strict=True)], axis=-1)


def init_transformer(
    sites: Sequence[Site], size: Size, key: Key[Array, ""], per_chunk: int | None = None
) -> TransformerCI:
    """Fresh transformers; a chunk's draw depends on its position and its sites alone.

    Input projection and hidden layers N(0, 2/fan_in), outputs of MLPs and the head N(0, 1/fan_in), q, k, v and o
    uniform on ±1/√d_model, biases zero (method.md §3). The fan-in of a padded projection is that of its own sites.

    Args:
        sites: the decomposed sites in numeric layer order, which is recorded.
        size: of each transformer.
        key: random key.
        per_chunk: consecutive matrices in a chunk, fewer in the last one; None is one transformer over all.
    """
    widths = chunk_widths(sites, per_chunk)
    d_in, d_out = (max(sizes) for sizes in zip(*widths, strict=True))
    networks: list[Transformer] = []
    for i, (width, out) in enumerate(widths):
        network = _init_network(width, out, size, jax.random.fold_in(key, i))
        W_in, W_out = network.embed.W, network.head.W
        embed = Affine(jnp.pad(W_in, ((0, d_in - width), (0, 0))), network.embed.b)
        head = Affine(jnp.pad(W_out, ((0, 0), (0, d_out - out))), jnp.zeros(d_out))
        networks.append(Transformer(embed, network.blocks, head, size.n_heads, size.rope_base))
    return TransformerCI(
        networks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks),
        sites=tuple(sites),
        per_chunk=per_chunk,
        max_len=size.max_len,
    )


def _init_network(d_in: int, d_out: int, size: Size, key: Key[Array, ""]) -> Transformer:
    d, stack = size.d_model, (size.n_blocks,)
    key_in, key_out, key_mlp, *keys = jax.random.split(key, 7)
    bound = 1 / math.sqrt(d)
    projections = [jax.random.uniform(k, (*stack, d, d), minval=-bound, maxval=bound) for k in keys]
    mlp = SiteMLP(*init_layers(key_mlp, stack, (d, *size.mlp_hidden, d)))
    return Transformer(
        embed=init_affine(key_in, (d_in, d), 2.0),
        blocks=Block(*projections, mlp=mlp),
        head=init_affine(key_out, (d, d_out), 1.0),
        n_heads=size.n_heads,
        rope_base=size.rope_base,
    )
