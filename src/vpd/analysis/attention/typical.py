"""How large the activations of attention's subcomponents are on data: what turns directions into scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vpd.analysis.run import Run
from vpd.progress import bar_unless, training_meter


@dataclass(frozen=True)
class Typical:
    """What a pass over data says of every subcomponent of some sites.

    Attributes:
        size: root mean square over positions of ``ci · (x · V_c)``, ``{site: [C]}``.
        mean: its mean, with its sign.
        mean_ci: mean lower importance, ``{site: [C]}``.
        positions: how many there were.
    """

    size: Mapping[str, Float[np.ndarray, " _C"]]
    mean: Mapping[str, Float[np.ndarray, " _C"]]
    mean_ci: Mapping[str, Float[np.ndarray, " _C"]]
    positions: int

    def largest(self, site: str, lengths: Float[np.ndarray, " _C"], n: int) -> Int[np.ndarray, " _n"]:
        """The subcomponents of a site that do anything, the largest first, at most so many.

        Args:
            site: its path.
            lengths: of the vectors that the activations multiply.
            n: how many.
        """
        written = self.size[site] * lengths
        order = np.argsort(-written, kind="stable")
        return order[written[order] > 0][:n]


def typical_sizes(run: Run, sites: Sequence[str], batches: int, quiet: bool = False) -> Typical:
    """Measure on batches of the run's evaluation stream, or of its training stream where it evaluates nothing.

    Args:
        run: opened.
        sites: paths of decomposed matrices.
        batches: how many.
        quiet: no progress bar.
    """
    square, signed, ci = ({site: np.zeros(run.axis.sizes[site]) for site in sites} for _ in range(3))
    positions = 0
    with training_meter(batches, 0, bar_unless(quiet), "measuring sizes", "step") as meter:
        for i in range(batches):
            batch = run.batch(i)
            importances, activations = run.causal_importances(batch), run.component_activations(batch)
            for site in sites:
                used = activations[site] * importances[site].astype(activations[site].dtype)
                square[site] += _summed(jnp.square(used))
                signed[site] += _summed(used)
                ci[site] += _summed(importances[site])
            positions += int(np.prod(importances[sites[0]].shape[:-1]))
            meter(i + 1, {})
    # Activations come times the norm of U; a subcomponent that writes nothing has no size.
    norms = {site: np.linalg.norm(np.asarray(run.components(site).U, np.float64), axis=1) for site in sites}
    norms = {site: np.where(norm > 0, norm, 1.0) for site, norm in norms.items()}
    return Typical(
        {site: np.sqrt(square[site] / positions) / norms[site] for site in sites},
        {site: signed[site] / positions / norms[site] for site in sites},
        {site: ci[site] / positions for site in sites},
        positions,
    )


def _summed(x: Shaped[Array, "..."]) -> np.ndarray:
    """Over all positions."""
    return np.asarray(jnp.sum(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1))), np.float64)
