"""Language models with stacked and single sites, and the same masked forward without stacks, matrix by matrix."""

from typing import Any  # a seam is called with whatever a model hands it

import jax
import jax.numpy as jnp
import numpy as np
from objective.scenes import jit, normal
from targets.language_models import MODELS, tokens

from vpd.decomposition import Components, ComponentSet, Site, SiteMask, dense, unstacked
from vpd.objective import Scene
from vpd.targets import LanguageModel, clean_forward
from vpd.targets.layers import layers_of
from vpd.training.build import cut_for, stacked_sites


class Plain:
    """A seam that goes through the layers one by one and multiplies by each matrix alone."""

    def __init__(self, pieces: dict[str, Components] | None = None, masks: dict[str, SiteMask] | None = None) -> None:
        self.pieces, self.masks = pieces or {}, masks or {}
        self.prefix, self.outputs = "", {}

    def __call__(self, name: str, x: Any, weight: jax.Array, bias=None, kind: str = "linear", factored: bool = False):
        name, x = self.prefix + name, dense(x)

        def through(matrix: jax.Array) -> jax.Array:
            return matrix[x] if kind == "embedding" else x @ matrix

        y = through(weight)
        if name in self.masks:
            mask, piece = self.masks[name], self.pieces[name]
            masked = (through(piece.V) * mask.component) @ piece.U
            rest = y - through(piece.V) @ piece.U
            y = masked if mask.delta is None else masked + mask.delta[..., None] * rest
        y = y if bias is None else y + bias
        self.outputs[name] = y
        return y

    def through(self, layers: Any, parts: Any, h: jax.Array) -> jax.Array:
        for run in layers:
            for i in range(run.depth):
                self.prefix = f"{layers.prefix}.{run.first + i}."
                for part in parts:
                    h = part(self, h, run.layer(i))
        self.prefix = ""
        return h

    def recomputed(self, body, given, **_: object):
        """In place."""
        return body(self, given)

    def scan(self, layers: Any, body: Any, carry: Any) -> Any:
        raise AssertionError("language models go through their layers part by part")


def sites_of(model: LanguageModel, sizes: dict[str, int]) -> tuple[Site, ...]:
    """Sites by the ends of their paths, stacked where several layers have them."""
    chosen = {
        name: (C, shape)
        for name, shape in model.matrices().items()
        for end, C in sizes.items()
        if name == end or name.endswith(f".{end}")
    }
    flat = [Site(name, d_in, d_out, C, kind) for name, (C, (d_in, d_out, kind)) in chosen.items()]
    return stacked_sites(flat, layers_of(model))


def pieces_of(sites: tuple[Site, ...]) -> ComponentSet:
    """Random V and U."""
    return ComponentSet(
        {
            s.name: Components(
                0.4 * normal(*s.stack, s.d_in, s.C, key=2 * i), 0.4 * normal(*s.stack, s.C, s.d_out, key=2 * i + 1)
            )
            for i, s in enumerate(sites)
        }
    )


def language_scene(
    name: str, sizes: dict[str, int], n_layers: int = 3, use_delta: bool = True
) -> tuple[Scene, dict[str, jax.Array]]:
    """A model with random components, and importances of which some are 0 and some 1."""
    model = MODELS[name](n_layers)
    sites, batch = sites_of(model, sizes), tokens()
    model = cut_for(model, sites)
    clean = jit(lambda m, x: clean_forward(m, x)[0])(model, batch)
    ci = {
        s.name: jnp.clip(0.5 + normal(*s.stack, *batch.shape, s.C, key=50 + i), 0.0, 1.0) for i, s in enumerate(sites)
    }
    return Scene(model, pieces_of(sites), batch, clean, sites, batch.shape, use_delta), ci


def by_matrix(scene: Scene, masks: dict[str, SiteMask]) -> tuple[dict[str, Components], dict[str, SiteMask]]:
    """V and U and the mask of each single matrix."""
    V, U = ({s.name: getattr(scene.components[s.name], part) for s in scene.sites} for part in ("V", "U"))
    V, U = unstacked(V, scene.sites), unstacked(U, scene.sites)
    component = unstacked({n: m.component for n, m in masks.items()}, scene.sites)
    delta = unstacked({n: m.delta for n, m in masks.items() if m.delta is not None}, scene.sites)
    pieces = {name: Components(jnp.asarray(V[name]), jnp.asarray(U[name])) for name in V}
    return pieces, {name: SiteMask(m, delta.get(name)) for name, m in component.items()}


def plain_forward(scene: Scene, masks: dict[str, SiteMask] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and the output of every matrix."""
    logits, outputs = _plain(scene, masks or {})
    return np.asarray(logits), {name: np.asarray(y) for name, y in outputs.items()}


@jit
def _plain(scene: Scene, masks: dict[str, SiteMask]) -> tuple[jax.Array, dict[str, jax.Array]]:
    seam = Plain(*by_matrix(scene, masks)) if masks else Plain()
    logits = scene.target.forward(scene.batch, seam)
    return dense(logits), seam.outputs


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
