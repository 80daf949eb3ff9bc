"""Where a model's queries, keys, values and outputs are, by the paths of their matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vpd.analysis.run import Run
from vpd.decomposition import Components
from vpd.errors import RunError
from vpd.evaluation.attention_patterns import AttentionModel, Heads, heads_of
from vpd.targets import GPT2, Induction, Llama, LlamaSimpleMLP, Target, frozen_weights

Role = Literal["q", "k", "v", "o"]
ROLES: tuple[Role, ...] = get_args(Role)
WORDS: Mapping[Role, str] = {"q": "queries", "k": "keys", "v": "values", "o": "outputs"}
Weights = Mapping[str, Float[np.ndarray, "d_in d_out"]]


@dataclass(frozen=True)
class Projection:
    """One of the four projections of a layer.

    Attributes:
        role: which.
        site: path of its matrix; three projections share one where they are fused.
        columns: of the matrix, which are the projection's.
        heads: that it has; keys and values may have fewer than queries.
    """

    role: Role
    site: str
    columns: slice
    heads: int

    def by_head(self, weight: Float[np.ndarray, "n d_out"]) -> Float[np.ndarray, "n heads d_head"]:
        """Rows of this projection's outputs (of W, or of U), head by head."""
        own = weight[:, self.columns]
        return own.reshape(len(own), self.heads, -1)


@dataclass(frozen=True)
class AttentionLayer:
    """The attention of one layer.

    Attributes:
        path: of the layer.
        projections: by role.
        heads: how it attends.
        bias: of queries and keys, ``{role: [heads * d_head]}``; empty where there is none.
    """

    path: str
    projections: Mapping[Role, Projection]
    heads: Heads
    bias: Mapping[Role, Float[np.ndarray, " d"]]

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads.n_heads // self.heads.n_kv_heads

    def decomposed(self, run: Run, role: Role) -> Components | None:
        """V and U of a projection's matrix; None where it is not decomposed."""
        site = self.projections[role].site
        return run.components(site) if site in run.sites else None


def attention_layers(run: Run) -> tuple[AttentionLayer, ...]:
    """The attention of every layer of a run's target.

    Raises:
        RunError: a target without attention that is known by its paths.
    """
    model = run.experiment.target
    if not isinstance(model, AttentionModel):
        raise RunError(
            f"{run.path} decomposes a {type(model).__name__}, in which vpd knows no attention; "
            "give a run of a language model or of the induction transformer"
        )
    depth = len(model.layers) if isinstance(model, Induction) else model.layers.depth
    return tuple(_layer(model, i) for i in range(depth))


def chosen_layers(run: Run, asked: str | None) -> tuple[AttentionLayer, ...]:
    """The layers to look at: those of which some projection is decomposed, or the one that is named.

    Args:
        run: opened.
        asked: number or path of a layer; None takes all.

    Raises:
        RunError: no such layer, or nothing of its attention is decomposed.
    """
    layers = attention_layers(run)
    some = [layer for layer in layers if any(layer.decomposed(run, role) is not None for role in ROLES)]
    if asked is None:
        if not some:
            raise RunError(f"{run.path} decomposes no matrix of its target's attention; there is nothing to show")
        return tuple(some)
    found = [layer for layer in layers if asked in (layer.path, layer.path.rpartition(".")[2])]
    if not found:
        raise RunError(f"there is no layer {asked!r}; the layers are {', '.join(layer.path for layer in layers)}")
    if found[0] not in some:
        there = ", ".join(layer.path for layer in some) or "none"
        raise RunError(f"nothing of the attention of {asked} is decomposed; layers with something: {there}")
    return tuple(found)


def _layer(model: AttentionModel, i: int) -> AttentionLayer:
    heads = heads_of(model)
    match model:
        case GPT2():
            path, d = f"{model.layers.prefix}.{i}", model.wte.shape[1]
            parts: dict[Role, slice] = {role: slice(n * d, (n + 1) * d) for n, role in enumerate(ROLES[:3])}
            fused = f"{path}.attn.c_attn"
            found: dict[Role, Projection] = {
                role: Projection(role, fused, part, heads.n_heads) for role, part in parts.items()
            }
            found["o"] = Projection("o", f"{path}.attn.c_proj", slice(None), heads.n_heads)
            bias = np.asarray(model.layers.whole.c_attn_bias[i], np.float32)
            return AttentionLayer(path, found, heads, {role: bias[parts[role]] for role in ROLES[:2]})
        case LlamaSimpleMLP() | Llama():
            name = "self_attn" if isinstance(model, Llama) else "attn"
            path = f"{model.layers.prefix}.{i}"
        case Induction():
            name, path = "attn", f"h.{i}"
    counts: Mapping[Role, int] = {"q": heads.n_heads, "k": heads.n_kv_heads, "v": heads.n_kv_heads, "o": heads.n_heads}
    own: dict[Role, Projection] = {
        role: Projection(role, f"{path}.{name}.{role}_proj", slice(None), counts[role]) for role in ROLES
    }
    return AttentionLayer(path, own, heads, {})


def attention_weights(run: Run) -> Weights:
    """The frozen matrix of every projection in float32, ``{path: [d_in, d_out]}``."""
    names = {p.site for layer in attention_layers(run) for p in layer.projections.values()}
    example = jnp.zeros((1, 8), jnp.int32)
    found = jax.jit(partial(_weights_of, frozenset(names)))(run.experiment.target, example)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def _weights_of(names: frozenset[str], target: Target, example: Int[Array, "1 T"]) -> dict[str, Array]:
    return {name: value for name, value in frozen_weights(target, example).items() if name in names}
