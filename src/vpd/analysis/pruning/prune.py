"""The subset of subcomponents that one behaviour needs, beside subsets that only seem to be enough."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vpd.analysis.prompts import Prompt
from vpd.analysis.pruning.measures import Kept, kept_from, measured
from vpd.analysis.pruning.optimise import Effort, optimise
from vpd.analysis.pruning.question import Importances, Measure, Members, Question, ask
from vpd.analysis.run import Run
from vpd.decomposition import unstacked
from vpd.errors import RunError
from vpd.progress import Watch, unwatched
from vpd.randomness import stream

# Rows of the prompt, each with masks of its own: while it is optimised, and where subsets are measured.
ROWS, MEASURED_ROWS = 8, 16

SUBSET, AS_MASKS, ROUNDED, FREE = "subset", "optimised as masks", "CI > 0", "CI as masks"
EXPLAINED = {
    SUBSET: "optimised with stochastic and adversarial masks on the rest",
    AS_MASKS: "optimised with the importances themselves as masks",
    ROUNDED: "all that the CI function calls alive",
    FREE: "the CI function's own importances as masks",
}

Masks = dict[str, Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Subset:
    """Some subcomponents at some positions, and what they do.

    Attributes:
        masks: ``{site: [*positions, C]}``: 1 keeps, 0 discards.
        kept: what they do by themselves, with masks on the rest, and what is left without them.
    """

    masks: Masks
    kept: Kept

    @property
    def size(self) -> int:
        """Subcomponents times positions."""
        return sum(int((x > 0).sum()) for x in self.masks.values())

    @property
    def distinct(self) -> int:
        """Subcomponents, whatever their positions."""
        return sum(int((x > 0).reshape(-1, x.shape[-1]).any(axis=0).sum()) for x in self.masks.values())


@dataclass(frozen=True)
class Pruning:
    """What was asked of a prompt, and the subsets.

    Attributes:
        prompt: the input.
        positions: whose outputs were asked for.
        measure: what was optimised.
        effort: how.
        labels: tokens at the positions, for cross-entropy; None for vectors.
        target_ce: the target's own cross-entropy there.
        subsets: by name, those of ``EXPLAINED``.
    """

    prompt: Prompt
    positions: tuple[int, ...]
    measure: Measure
    effort: Effort
    labels: tuple[int, ...] | None
    target_ce: float | None
    subsets: dict[str, Subset]

    def members(self, name: str = SUBSET) -> dict[str, Bool[np.ndarray, "..."]]:
        """Which subcomponents a subset has, ``{site: [1, *positions, C]}``."""
        return {site: x[None] > 0 for site, x in self.subsets[name].masks.items()}


def prune(
    run: Run, prompt: Prompt, positions: Sequence[int], measure: Measure, effort: Effort, watch: Watch = unwatched
) -> Pruning:
    """Find the subset that a behaviour needs, and measure it beside three others.

    Args:
        run: opened.
        prompt: the input.
        positions: whose outputs are asked for; without tokens all are.
        measure: ``ce`` of the next token, or ``kl``: the target's divergence from its clean output.
        effort: how long and how hard.
        watch: of the number of steps, called with how many are made.

    Raises:
        RunError: cross-entropy of an input without tokens; a prompt in which nothing is alive.
    """
    if measure == "ce" and not prompt.has_tokens:
        raise RunError(
            "cross-entropy is of tokens, and this input has none; take --measure kl, the target's divergence"
        )
    question = ask(run, prompt, positions, measure, ROWS)
    alive = {s: ci > 0 for s, ci in question.ci.items()}
    if not any(bool(x.any()) for x in alive.values()):
        raise RunError("no subcomponent has an importance above 0 for this prompt; give another one")
    found: dict[str, Importances] = {}
    with watch(2 * effort.steps) as show:
        found[SUBSET] = optimise(question, alive, effort, show)
        as_masks = replace(effort, faithful=False)
        found[AS_MASKS] = optimise(question, alive, as_masks, lambda done: show(effort.steps + done))
    subsets = {name: {s: (x > 0).astype(jnp.float32) for s, x in g.items()} for name, g in found.items()}
    subsets |= {ROUNDED: {s: x.astype(jnp.float32) for s, x in alive.items()}, FREE: question.ci}
    judged = ask(run, prompt, positions, measure, MEASURED_ROWS)
    asked = judged.asked
    return Pruning(
        prompt=prompt,
        positions=tuple(positions),
        measure=measure,
        effort=effort,
        labels=None if asked.labels is None else tuple(int(i) for i in asked.labels),
        target_ce=_clean_ce(judged),
        subsets=_measured(run, judged, subsets, alive, effort.seed),
    )


def _measured(
    run: Run, question: Question, subsets: dict[str, Importances], alive: Members, seed: int
) -> dict[str, Subset]:
    program = jax.jit(measured)
    done: dict[str, Subset] = {}
    for name, g in subsets.items():
        kept = kept_from(program(question, g, alive, stream(seed, "pruning/measured")), question.asked.measure)
        single = unstacked({s: np.asarray(x) for s, x in g.items()}, run.experiment.problem.sites)
        done[name] = Subset({site: np.asarray(x)[0] for site, x in single.items()}, kept)
    return done


def _clean_ce(question: Question) -> float | None:
    if question.asked.labels is None:
        return None
    clean, asked = question.scene.clean, question.about("ce").asked
    return float(asked.divergence(clean, clean).mean())
