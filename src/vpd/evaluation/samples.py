"""What a language model writes under each masking: the same prompts, continued side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vpd.data.feed import Batches
from vpd.data.tokenizer import TextTokenizer
from vpd.decomposition import Activation, Factored, SiteMask, dense
from vpd.decomposition.site import made
from vpd.evaluation.maskings import Importances, Masking, masks_of
from vpd.hosts import gathered
from vpd.objective import Scene
from vpd.randomness import Seed, stream
from vpd.targets import LanguageModel, masked_site_outputs, recorded_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, cast_compute, importances, leading_shape

TARGET = "target"
SHOWN: tuple[Masking, ...] = ("unmasked", "stoch_masked", "ci_masked", "rounded_masked", "ci_shuffled")
PROMPTS, NEW_TOKENS = 3, 24
TAIL = 24  # tokens of a prompt that are shown


def continuations(
    problem: Problem,
    target: LanguageModel,
    decomposition: Decomposition,
    prompts: Int[Array, "P T"],
    n_new: int,
    rounding_threshold: float,
    seed: Seed,
) -> Int[Array, "maskings P n_new"]:
    """The likeliest next tokens, one after the other: of the target, then under each masking that is shown.

    Importances are those of the clean forward on the window that is continued. The window keeps its length T: the new
    token enters at its end and the first one leaves, so that every token is made by the same program.

    Args:
        problem: the static part of the run.
        target: the frozen network.
        decomposition: its parameters.
        prompts: first windows.
        n_new: tokens to make.
        rounding_threshold: importances above it are 1 in the rounded masking.
        seed: of the run, for the drawn masks.
    """
    P, _ = prompts.shape
    net = cast_compute(problem, target)
    components = cast_compute(problem, decomposition.components)

    def next_tokens(windows: Int[Array, "all_P T"], i: Int[Array, ""]) -> tuple[Array, Array]:
        clean, inputs, _, _ = recorded_forward(net, windows, problem.sites)
        leading = leading_shape(problem, inputs)
        scene = Scene(net, components, windows, clean, problem.sites, leading, problem.use_delta)
        ci = importances(problem, decomposition.ci_fn, decomposition.components, inputs, i, seed).lower
        masks = _side_by_side(scene, ci, P, stream(seed, "eval/samples", i), rounding_threshold)
        masked, _ = masked_site_outputs(net, components, windows[P:], masks)
        logits = jnp.concatenate([last_logits(clean)[:P], last_logits(masked)])
        new = jnp.argmax(logits, axis=-1).astype(windows.dtype)
        return jnp.concatenate([windows[:, 1:], new[:, None]], axis=1), new

    windows = jnp.tile(prompts, (len(SHOWN) + 1, 1))
    _, new = jax.lax.scan(next_tokens, windows, jnp.arange(n_new, dtype=jnp.int32))
    return new.T.reshape(len(SHOWN) + 1, P, n_new)


def last_logits(logits: Activation) -> Float[Array, "P vocab"]:
    """Those of the last position; the others are never formed."""
    if isinstance(logits, Factored):
        logits = Factored(tuple((z[:, -1], basis) for z, basis in logits.terms))
        return dense(logits).astype(jnp.float32)
    return logits[:, -1].astype(jnp.float32)


def _side_by_side(
    scene: Scene, ci: Importances, P: int, key: Key[Array, ""], rounding_threshold: float
) -> dict[str, SiteMask]:
    """Masks of P windows for every masking, one after the other along the batch; the target's own have none."""
    parts: dict[str, list[SiteMask]] = {site.name: [] for site in scene.sites}
    for n, masking in enumerate(SHOWN, start=1):
        own = {
            site.name: jax.lax.slice_in_dim(ci[site.name], n * P, (n + 1) * P, axis=len(site.stack))
            for site in scene.sites
        }
        few = replace(scene, leading=(P, *scene.leading[1:]))
        for name, mask in masks_of(masking, few, own, key, rounding_threshold).items():
            parts[name].append(made(mask))
    return {site.name: _joined(parts[site.name], len(site.stack)) for site in scene.sites}


def _joined(masks: Sequence[SiteMask], axis: int) -> SiteMask:
    """One mask for all; those without a delta channel have it at 0."""
    component = jnp.concatenate([mask.component for mask in masks], axis=axis)
    if all(mask.delta is None for mask in masks):
        return SiteMask(component)
    deltas = [jnp.zeros_like(m.component[..., 0]) if m.delta is None else m.delta for m in masks]
    return SiteMask(component, jnp.concatenate(deltas, axis=axis))


@dataclass(frozen=True)
class Tokens:
    """Prompts and their continuations as token ids.

    Attributes:
        prompts: the end of each.
        new: of every prompt, by masking; those of the target first.
    """

    prompts: list[list[int]]
    new: dict[str, list[list[int]]]

    def as_record(self, tokenizer: TextTokenizer | None) -> dict[str, object]:
        """What is stored: ids, and the text that they stand for where the tokenizer is at hand."""
        return {
            "prompts": [
                _told(tokenizer, [], prompt)
                | {"continuations": {name: _told(tokenizer, prompt, new[i]) for name, new in self.new.items()}}
                for i, prompt in enumerate(self.prompts)
            ]
        }


class Writer:
    """Continues the first sequences of the evaluation stream, the same ones in every evaluation; compiled once."""

    def __init__(
        self, problem: Problem, target: LanguageModel, batches: Batches, rounding_threshold: float, seed: int
    ) -> None:
        """Take the prompts from the first batch."""
        self._target, self._seed = target, jnp.asarray(seed, jnp.uint32)
        self._prompts = batches(self._seed, jnp.asarray(0, jnp.int32))[:PROMPTS]
        self._program = jax.jit(partial(_program, problem, rounding_threshold))

    def write(self, decomposition: Decomposition) -> Tokens:
        """The ends of the prompts and what follows them."""
        new = gathered(self._program(self._target, decomposition, self._prompts, self._seed))
        by_masking = {name: np.asarray(ids).tolist() for name, ids in zip((TARGET, *SHOWN), new, strict=True)}
        return Tokens(np.asarray(self._prompts)[:, -TAIL:].tolist(), by_masking)


def _program(
    problem: Problem,
    rounding_threshold: float,
    target: LanguageModel,
    decomposition: Decomposition,
    prompts: Int[Array, "P T"],
    seed: Seed,
) -> Int[Array, "maskings P n_new"]:
    return continuations(problem, target, decomposition, prompts, NEW_TOKENS, rounding_threshold, seed)


def _told(tokenizer: TextTokenizer | None, before: Sequence[int], ids: Sequence[int]) -> dict[str, object]:
    """Ids and their text; a tokenizer may drop the space at the beginning of what it decodes alone."""
    if tokenizer is None:
        return {"ids": list(ids)}
    start, whole = tokenizer.decode(before) if before else "", tokenizer.decode([*before, *ids])
    text = whole[len(start) :] if whole.startswith(start) else tokenizer.decode(ids)
    return {"ids": list(ids), "text": text}
