"""What is asked of one prompt: cross-entropy or divergence at chosen positions, as the divergence of a target."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpd.analysis.prompts import Prompt
from vpd.analysis.run import Run
from vpd.decomposition import Activation, Factored, SiteKind
from vpd.objective import Scene
from vpd.targets import Seam, Target
from vpd.targets.base import Batch
from vpd.targets.divergence import cross_entropy
from vpd.training.step import clean_scene

Measure = Literal["ce", "kl"]
Importances = dict[str, Float[Array, "..."]]
Members = dict[str, Bool[Array, "..."]]


class Asked(eqx.Module):
    """A target whose divergence is what is asked: at some positions, of its own output or of labels.

    So every recon term, adversaries included, works on the question as on the divergence of training.

    Attributes:
        target: the frozen network.
        positions: where outputs are compared, ``[P]``; None compares all there is.
        labels: tokens there, ``[P]``, for cross-entropy.
        measure: ``kl``, the target's own divergence from the clean output, or ``ce``.
    """

    target: Target
    positions: Int[Array, " P"] | None
    labels: Int[Array, " P"] | None
    measure: Measure = eqx.field(static=True)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What could be asked."""
        return ("kl",) if self.labels is None else ("ce", "kl")

    def forward(self, batch: Batch, seam: Seam) -> Activation:
        """That of the target."""
        return self.target.forward(batch, seam)

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """``[B, P]``: what is asked, in nats; of vectors the target's own divergence, ``[B]``."""
        clean, masked = self._at(clean), self._at(masked)
        if self.measure == "kl":
            return self.target.divergence(clean, masked)
        assert self.labels is not None
        return cross_entropy(masked, jnp.broadcast_to(self.labels, masked.shape[:-1]))

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """Those of the target."""
        return self.target.matrices()

    def _at(self, x: Activation) -> Activation:
        if self.positions is None:
            return x
        if isinstance(x, Factored):
            return Factored(tuple((z[:, self.positions], basis) for z, basis in x.terms))
        return x[:, self.positions]


class Question(eqx.Module):
    """A prompt, several times over, and what is asked of it.

    Attributes:
        scene: what masked forwards share; its target is :class:`Asked`, its batch the prompt in every row.
        ci: lower causal importances of the prompt, by site or stack ``[*stack, 1, *positions, C]``.
    """

    scene: Scene
    ci: Importances

    @property
    def asked(self) -> Asked:
        """The target with its question."""
        assert isinstance(self.scene.target, Asked)
        return self.scene.target

    def about(self, measure: Measure) -> "Question":
        """The same with another measure."""
        return replace(self, scene=replace(self.scene, target=replace(self.asked, measure=measure)))

    def spread(self, x: Mapping[str, Shaped[Array, "..."]]) -> dict[str, Shaped[Array, "..."]]:
        """What is known of the one prompt, for every row."""
        rows, axes = self.scene.leading[0], {site.name: len(site.stack) for site in self.scene.sites}
        return {s: jnp.repeat(value, rows, axis=axes[s]) for s, value in x.items()}


def ask(run: Run, prompt: Prompt, positions: Sequence[int], measure: Measure, rows: int) -> Question:
    """The question of a prompt; without tokens all outputs are compared.

    The label of a position is the token that follows in the prompt, after its last token the one that the target
    predicts.

    Args:
        run: opened.
        prompt: the input.
        positions: whose outputs are asked for.
        measure: ``ce`` or ``kl``.
        rows: how many times the prompt is repeated, each with masks of its own.
    """
    problem = replace(run.experiment.problem, compute_dtype="float32", remat=False, remat_layers=False)
    batch = jnp.repeat(prompt.batch, rows, axis=0)
    at = labels = None
    if prompt.has_tokens:
        at = jnp.asarray(positions, jnp.int32)
        following = (
            jnp.roll(prompt.batch[0], -1).at[-1].set(jnp.argmax(run.output(prompt.batch)[0, -1]).astype(jnp.int32))
        )
        labels = following[at]
    asked = Asked(run.experiment.target, at, labels, measure)
    scene = jax.jit(lambda asked, components, batch: clean_scene(problem, asked, components, batch)[0])(
        asked, run.decomposition.components, batch
    )
    return Question(scene, run.stacked_importances(prompt.batch))
