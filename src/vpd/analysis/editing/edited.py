"""An edited network: its output, its effect, and a checkpoint of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpd.analysis.editing.edits import Edit, RankOne, added_by
from vpd.analysis.editing.weights import save_edited
from vpd.analysis.run import Run, in_type_of
from vpd.decomposition import Activation, Components, ComponentSet, SiteMask, dense, unstacked
from vpd.targets import Target, masked_site_outputs
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances


class Added(eqx.Module):
    """What edits add to one matrix.

    Attributes:
        V: ``[d_in, K]``, a column for each rank-one matrix.
        U: ``[K, d_out]``.
        weight: of each.
        everywhere: whether each holds at every position.
        positions: where the others hold; positions beyond the last column are none of them.
        threshold: importance above which each holds; −∞ is always.
        index: of the subcomponent whose importance counts.
    """

    V: Float[Array, "d_in K"]
    U: Float[Array, "K d_out"]
    weight: Float[Array, " K"]
    everywhere: Bool[Array, " K"]
    positions: Bool[Array, "K longest"]
    threshold: Float[Array, " K"]
    index: Int[Array, " K"]


@dataclass(frozen=True)
class Edited:
    """A run's network with edits.

    Attributes:
        run: opened.
        edits: what is changed.
        added: what they add to each matrix.
    """

    run: Run
    edits: tuple[Edit, ...]
    added: Mapping[str, list[RankOne]]

    @property
    def gated(self) -> bool:
        """Whether some edit asks for causal importances."""
        return any(edit.when_active is not None for edit in self.edits)

    def output(self, batch: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The edited network's output."""
        return self.program(self.run.experiment.target, self.run.decomposition, self.arrays, batch)

    def save(self, path: str | Path) -> Path:
        """Write the edited network as a folder that the target's own loader reads: see :func:`save_edited`.

        Raises:
            RunError: edits that hold at some positions or inputs alone, a folder that is there already, or a target
                whose weights vpd does not hold.
        """
        return save_edited(self.run, self.edits, self.added, Path(path))

    @cached_property
    def arrays(self) -> dict[str, Added]:
        """What is added, as the program takes it."""
        return {site: _stacked(ones) for site, ones in self.added.items()}

    @cached_property
    def program(self):
        """``(target, decomposition, arrays, batch)`` to the output, compiled once a shape."""
        gated = self.gated

        def output(target: Target, decomposition: Decomposition, added: dict[str, Added], batch: Array) -> Array:
            return dense(edited_forward(self.run.experiment.problem, gated, target, decomposition, added, batch))

        return jax.jit(output)


def edited(run: Run, edits: Sequence[Edit]) -> Edited:
    """A run's network with edits; nothing is computed yet.

    Raises:
        RunError: as :func:`~vpd.analysis.editing.edits.added_by` says.
    """
    return Edited(run, tuple(edits), added_by(run, edits))


def edited_forward(
    problem: Problem,
    gated: bool,
    target: Target,
    decomposition: Decomposition,
    added: Mapping[str, Added],
    batch: Shaped[Array, "..."],
) -> Activation:
    """``x W + Σ_k gate_k · weight_k · (x v_k) u_k`` at every edited matrix, the whole network otherwise frozen.

    Args:
        problem: the run's sites.
        gated: whether importances are asked for; they are those of the clean forward.
        target: the frozen network.
        decomposition: whose importances count.
        added: by path of the matrix.
        batch: input of the target.
    """
    shapes = jax.eval_shape(partial(lower_importances, problem), target, decomposition, batch)
    first = problem.sites[0]
    leading = shapes[first.name].shape[len(first.stack) : -1]
    ci = unstacked(lower_importances(problem, target, decomposition, batch), problem.sites) if gated else None
    pieces = {site: Components(own.V, own.U) for site, own in added.items()}
    # With a delta mask of 1 the masked site is x W + ((x V) ∘ (m − 1)) U, whatever V and U are.
    masks = {
        site: SiteMask(
            1 + own.weight * _gate(own, leading, None if ci is None else jnp.asarray(ci[site])), jnp.ones(leading)
        )
        for site, own in added.items()
    }
    components, masks = in_type_of(target, (ComponentSet(pieces), masks))
    return masked_site_outputs(target, components, batch, masks)[0]


def _gate(own: Added, leading: tuple[int, ...], ci: Shaped[Array, "..."] | None) -> Float[Array, "*leading K"]:
    """1 where an edit holds."""
    gate = jnp.ones((*leading, own.weight.shape[0]))
    if own.positions.shape[1]:
        T = leading[-1]
        at = jnp.pad(own.positions, ((0, 0), (0, max(0, T - own.positions.shape[1]))))[:, :T]
        gate = gate * (at.T | own.everywhere).astype(gate.dtype)
    if ci is not None:
        gate = gate * (ci[..., own.index].astype(gate.dtype) > own.threshold).astype(gate.dtype)
    return gate


def _stacked(ones: Sequence[RankOne]) -> Added:
    places = [one.edit.positions for one in ones]
    at = np.zeros((len(ones), 1 + max((max(own) for own in places if own is not None), default=-1)), bool)
    for row, own in zip(at, places, strict=True):
        row[list(own or ())] = True
    thresholds = [one.edit.when_active for one in ones]
    return Added(
        V=jnp.asarray(np.stack([one.v for one in ones], axis=1)),
        U=jnp.asarray(np.stack([one.u for one in ones])),
        weight=jnp.asarray([one.weight for one in ones], jnp.float32),
        everywhere=jnp.asarray([own is None for own in places]),
        positions=jnp.asarray(at),
        threshold=jnp.asarray([-np.inf if t is None else t for t in thresholds], jnp.float32),
        index=jnp.asarray([one.of.index for one in ones], jnp.int32),
    )
