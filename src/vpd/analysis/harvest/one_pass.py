"""What the device computes for a harvest: one clean forward a batch, and products over its positions."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.analysis.run import normed_activations
from vpd.decomposition import dense, unstacked
from vpd.targets import Target, recorded_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, cast_compute, importances


class Seen(eqx.Module):
    """What one batch shows, subcomponents along one axis over all sites.

    Attributes:
        importances: lower causal importances, ``[rows, T, n]``; T is 1 without a sequence.
        activations: ``‖U_c‖ · x·V_c``, ``[rows, T, n]``.
        peaks: largest absolute activation of each row among the positions where it fires, ``[rows, n]``; −1 where it
            fires nowhere.
        places: the position of that, ``[rows, n]``.
        probabilities: the model's distribution of the next token, ``[rows · T, vocab]``; None without tokens.
    """

    importances: Float[Array, "rows T n"]
    activations: Float[Array, "rows T n"]
    peaks: Float[Array, "rows n"]
    places: Int[Array, "rows n"]
    probabilities: Float[Array, "N vocab"] | None


def look(
    problem: Problem,
    has_tokens: bool,
    target: Target,
    decomposition: Decomposition,
    batch: Shaped[Array, "..."],
    threshold: Float[Array, ""],
) -> Seen:
    """One clean forward: importances, activations and output of a batch.

    Args:
        problem: the static part of the run.
        has_tokens: whether the output is logits over a vocabulary that are to be kept.
        target: the frozen network.
        decomposition: V, U and the CI function.
        batch: its input.
        threshold: a subcomponent fires above it.
    """
    net, x = cast_compute(problem, (target, batch))
    found = recorded_forward(net, x, problem.sites)
    quiet = replace(problem, sampling="continuous")
    ci = importances(quiet, decomposition.ci_fn, decomposition.components, found.inputs, 0, 0).lower
    pieces = cast_compute(problem, decomposition.components)
    act = {s.name: normed_activations(s, pieces[s.name], found.inputs[s.name]) for s in problem.sites}
    rows = batch.shape[0]

    def in_a_row(by_site: dict[str, Array]) -> Float[Array, "rows T n"]:
        parts = [jnp.asarray(part).astype(jnp.float32) for part in unstacked(by_site, problem.sites).values()]
        joined = jnp.concatenate(parts, axis=-1)
        return joined.reshape(rows, -1, joined.shape[-1])

    every_ci, every_act = in_a_row(ci), in_a_row(act)
    size = jnp.where(every_ci > threshold, jnp.abs(every_act), -1.0)
    chances = None
    if has_tokens:
        logits = dense(found.output)
        chances = jax.nn.softmax(logits.reshape(-1, logits.shape[-1]).astype(jnp.float32), axis=-1)
    return Seen(every_ci, every_act, jnp.max(size, axis=1), jnp.argmax(size, axis=1).astype(jnp.int32), chances)


@jax.jit
def masses(
    importances: Float[Array, "rows T n"],
    threshold: Float[Array, ""],
    some: Int[Array, " k"],
    probabilities: Float[Array, "N vocab"],
) -> Float[Array, "k vocab"]:
    """The model's output distribution summed over the positions where each of some subcomponents fires."""
    flat = importances.reshape(-1, importances.shape[-1])
    fires = (flat[:, some] > threshold).astype(jnp.float32)
    return jnp.matmul(fires.T, probabilities, precision=jax.lax.Precision.HIGHEST)
