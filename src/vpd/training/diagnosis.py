"""The arrays of one step in numbers small enough to be written down: where values stop being finite."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vpd.decomposition import ComponentSet, unstacked
from vpd.objective import AdversaryState
from vpd.randomness import Seed
from vpd.targets import Target, clean_forward, frozen_weights
from vpd.targets.base import dense_inputs
from vpd.training.checkpoint import named_leaves
from vpd.training.state import Decomposition, TrainState
from vpd.training.step import Problem, cast_compute, step_gradients


class Extent(NamedTuple):
    """How large an array is; of a stack, one of each along its first axis.

    Attributes:
        norm: Euclidean, of the entries that are finite.
        largest: absolute value of those.
        bad: how many entries are not finite.
    """

    norm: Float[Array, "..."] | np.ndarray
    largest: Float[Array, "..."] | np.ndarray
    bad: Int[Array, "..."] | np.ndarray

    def as_record(self) -> dict[str, float | int]:
        """As JSON holds it."""
        return {"norm": float(self.norm), "largest": float(self.largest), "not_finite": int(self.bad)}


BySite = dict[str, Extent]


class Pieces(NamedTuple):
    """V and U of the sites that own arrays, or their gradients."""

    V: BySite
    U: BySite


class StepExtents(NamedTuple):
    """What one step starts from and what it learns, by site where it belongs to one.

    Attributes:
        weights: frozen ones.
        components: before the step.
        adversaries: ``{term: {part: {site: extent}}}``, before the step.
        inputs: of the sites, in the clean forward pass.
        gradients: of the components.
        ci_fn: parameters of the CI function before the step, by path.
        ci_fn_gradient: their gradients.
    """

    weights: BySite
    components: Pieces
    adversaries: dict[str, dict[str, BySite]]
    inputs: BySite
    gradients: Pieces
    ci_fn: dict[str, Extent]
    ci_fn_gradient: dict[str, Extent]

    def in_order(self) -> dict[str, BySite]:
        """``{what: {site: extent}}`` as a step computes with it: values further down are made from those further up."""
        adversaries = {
            f"{part} of {name}": by_site for name, parts in self.adversaries.items() for part, by_site in parts.items()
        }
        before = {"frozen weight": self.weights, "V": self.components.V, "U": self.components.U}
        learned = {"gradient of V": self.gradients.V, "gradient of U": self.gradients.U}
        return before | adversaries | {"input": self.inputs} | learned


def extent(x: Shaped[Array, "..."], stacked: bool = False) -> Extent:
    """The extent of an array, or of each part along its first axis."""
    axes = tuple(range(int(stacked), x.ndim))
    sound = jnp.isfinite(x)
    values = jnp.where(sound, jnp.abs(x), 0).astype(jnp.float32)
    largest = jnp.max(values, axes, initial=0.0)
    # Squares of finite values may be infinite.
    unit = jnp.where(largest > 0, largest, 1.0)
    scaled = values / (unit.reshape(unit.shape + (1,) * len(axes)))
    return Extent(unit * jnp.sqrt(jnp.sum(scaled**2, axes)), largest, jnp.sum(~sound, axes, dtype=jnp.int32))


def step_extents(
    problem: Problem, target: Target, state: TrainState, batch: Shaped[Array, "..."], seed: Seed
) -> StepExtents:
    """A step up to its gradients; arguments as for :func:`vpd.training.step.train_step`."""
    decomposition = state.decomposition
    gradients, _ = step_gradients(problem, target, state, batch, seed)
    inputs = dense_inputs(clean_forward(*cast_compute(problem, (target, batch)), problem.sites)[1])
    return StepExtents(
        weights=_extents(problem, frozen_weights(target, batch, problem.sites)),
        components=component_extents(problem, decomposition.components),
        adversaries={n: _adversary_extents(problem, adversary) for n, adversary in state.training.adversaries.items()},
        inputs=_extents(problem, inputs),
        gradients=component_extents(problem, gradients.components),
        ci_fn=ci_extents(decomposition),
        ci_fn_gradient=_leaf_extents(gradients.ci_fn),
    )


def component_extents(problem: Problem, components: ComponentSet) -> Pieces:
    """V and U of the sites that own arrays."""
    owned = components.owned
    return Pieces(
        _extents(problem, {site: pieces.V for site, pieces in owned.items()}),
        _extents(problem, {site: pieces.U for site, pieces in owned.items()}),
    )


def ci_extents(decomposition: Decomposition) -> dict[str, Extent]:
    """Parameters of the CI function, by path."""
    return _leaf_extents(decomposition.ci_fn)


def by_matrix(problem: Problem, by_site: Mapping[str, Extent]) -> BySite:
    """Extents on the host, of single matrices in numeric layer order."""
    fields = [
        unstacked({site: np.asarray(found[i]) for site, found in by_site.items()}, problem.sites)
        for i in range(len(Extent._fields))
    ]
    return {site: Extent(*(np.asarray(field[site]) for field in fields)) for site in fields[0]}


def first_bad(sites: Mapping[str, Mapping[str, Extent]]) -> tuple[str, str] | None:
    """What is not finite first, and at which site; extents of single matrices in the order of
    :meth:`StepExtents.in_order`."""
    return next(
        ((what, site) for what, by_site in sites.items() for site, found in by_site.items() if found.bad > 0), None
    )


def _adversary_extents(problem: Problem, adversary: AdversaryState) -> dict[str, BySite]:
    parts = {"sources": adversary.sources, "first moments": adversary.m, "second moments": adversary.v}
    return {part: _extents(problem, by_site) for part, by_site in parts.items() if by_site}


def _extents(problem: Problem, arrays: Mapping[str, Shaped[Array, "..."]]) -> BySite:
    """Of arrays by site, token ids left out."""
    stacked = {site.name: site.span is not None for site in problem.sites}
    return {site: extent(x, stacked[site]) for site, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _leaf_extents(tree: object) -> dict[str, Extent]:
    leaves = {
        name: jnp.asarray(leaf)
        for name, leaf in named_leaves(tree).items()
        if not isinstance(leaf, jax.ShapeDtypeStruct)
    }
    return {name: extent(leaf) for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
