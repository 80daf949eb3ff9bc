"""How far masking moves where a language model attends: the divergence of attention patterns, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vpd.decomposition import Activation, Mask, dense
from vpd.errors import RunError
from vpd.evaluation.maskings import masks_of
from vpd.objective import Scene
from vpd.rotary import Scaling
from vpd.targets import GPT2, Induction, LanguageModel, Llama, LlamaSimpleMLP
from vpd.targets.attention import attention_pattern
from vpd.targets.base import Pass
from vpd.targets.layers import layers_of

# Of an induction transformer, whose attention takes the default.
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class AttentionMetric:
    """One metric of attention patterns.

    Attributes:
        queries: glob of the query projections, or of the fused ones where there is no ``keys``.
        keys: glob of the key projections.
        n_heads: query heads.
        masking: how the sites are masked.
    """

    queries: str
    keys: str | None
    n_heads: int
    masking: Literal["ci_masked", "stoch_masked"]


@dataclass(frozen=True)
class Heads:
    """How a model attends."""

    n_heads: int
    n_kv_heads: int
    base: float | None
    scaling: Scaling | None = None


AttentionModel = LanguageModel | Induction


def heads_of(model: AttentionModel) -> Heads:
    """Heads and rotary frequencies of a model."""
    match model:
        case LlamaSimpleMLP():
            return Heads(model.n_heads, model.n_kv_heads, model.rope_base)
        case Llama():
            return Heads(model.n_heads, model.n_kv_heads, model.rope_base, model.scaling)
        case GPT2():
            return Heads(model.n_heads, model.n_heads, None)
        case Induction():
            return Heads(model.n_heads, model.n_heads, ROTARY_BASE)


def check_attention(key: str, metric: AttentionMetric, model: AttentionModel) -> None:
    """Refuse globs that name no attention of the model, or another number of heads.

    Raises:
        RunError: naming the metric and the way out.
    """
    heads = heads_of(model).n_heads
    if metric.n_heads != heads:
        raise RunError(f"{key}: n_heads is {metric.n_heads}, and the model has {heads} heads; write n_heads: {heads}")
    found = {glob: _projections(model, glob) for glob in (metric.queries, metric.keys) if glob is not None}
    for glob, places in found.items():
        if not places:
            raise RunError(
                f"{key}: {glob!r} names no matrix in the layers of the model; name its attention projections"
            )
    if len({tuple(sorted(places)) for places in found.values()}) > 1:
        raise RunError(f"{key}: {metric.queries!r} and {metric.keys!r} name projections of different layers")


def _projections(model: AttentionModel, glob: str) -> dict[tuple[str, int, int], str]:
    """Matrices that a glob names: of each run of layers (prefix, first, depth) the name of its stack or single site."""
    matrices = model.matrices()
    found: dict[tuple[str, int, int], str] = {}
    if isinstance(model, Induction):  # its layers are no stack
        numbers = range(len(model.layers))
        return {
            ("h", i, 1): name
            for i in numbers
            for name in matrices
            if name.startswith(f"h.{i}.attn.") and fnmatchcase(name, glob)
        }
    for layers in layers_of(model):
        for run in layers:
            own = f"{layers.prefix}.{run.first}."
            for name in matrices:
                local = name.removeprefix(own)
                members = (f"{layers.prefix}.{i}.{local}" for i in range(run.first, run.first + run.depth))
                if name.startswith(own) and any(fnmatchcase(member, glob) for member in members):
                    path = name if run.depth == 1 else f"{run.span}.{local}"
                    found[layers.prefix, run.first, run.depth] = path
    return found


def attention_divergence(
    metric: AttentionMetric, scene: Scene, ci: Mapping[str, Float[Array, "..."]], key: Key[Array, ""]
) -> dict[str, Float[Array, ""]]:
    """KL(clean ‖ masked) of attention patterns, the mean over batch, heads and queries, ``{layer path: ·}``.

    Args:
        metric: where queries and keys are, and how sites are masked.
        scene: target, components, tokens and clean output.
        ci: lower importances.
        key: for the drawn masks.
    """
    model = scene.target
    assert isinstance(model, AttentionModel)
    queries = _projections(model, metric.queries)
    keys = queries if metric.keys is None else _projections(model, metric.keys)
    names = frozenset((*queries.values(), *keys.values()))
    masks = masks_of(metric.masking, scene, ci, key)
    clean, masked = _outputs(scene, {}, names), _outputs(scene, masks, names)
    found: dict[str, Float[Array, ""]] = {}
    for (prefix, first, depth), query in queries.items():
        pair = (query, keys[prefix, first, depth])
        log_p, log_q = (_patterns(model, metric, outputs, pair, depth) for outputs in (clean, masked))
        gap = jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * (log_p - log_q), 0.0)
        per_layer = jnp.mean(jnp.sum(gap, axis=-1), axis=(1, 2, 3))
        for i in range(depth):
            if fnmatchcase(_member(query, prefix, first, depth, i), metric.queries):
                found[f"{prefix}.{first + i}"] = per_layer[i]
    return found


def _member(path: str, prefix: str, first: int, depth: int, i: int) -> str:
    local = path.removeprefix(f"{prefix}.{first}-{first + depth - 1}." if depth > 1 else f"{prefix}.{first}.")
    return f"{prefix}.{first + i}.{local}"


def _outputs(scene: Scene, masks: Mapping[str, Mask], names: frozenset[str]) -> dict[str, Activation]:
    seam = Pass(masks, scene.components, names | frozenset(masks))
    scene.target.forward(scene.batch, seam)
    return seam.outputs


def _patterns(
    model: AttentionModel,
    metric: AttentionMetric,
    outputs: Mapping[str, Activation],
    pair: tuple[str, str],
    depth: int,
) -> Float[Array, "depth B heads T T"]:
    heads = heads_of(model)
    q, k = (dense(outputs[name]) for name in pair)
    if metric.keys is None:
        q, k, _ = jnp.split(q, 3, axis=-1)
    q, k = (x if depth > 1 else x[None] for x in (q, k))

    def pattern(q: Float[Array, "B T d_q"], k: Float[Array, "B T d_kv"]) -> Float[Array, "B heads T T"]:
        return attention_pattern(q, k, heads.n_heads, heads.n_kv_heads, heads.base, heads.scaling)

    return jax.vmap(pattern)(q, k)
