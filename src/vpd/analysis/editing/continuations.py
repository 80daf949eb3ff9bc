"""Continuations that a network has learned and that few subcomponents carry: what a narrow edit can be tried on."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vpd.analysis.editing.sets import ARROW, continuation, refuse_without_sequence
from vpd.analysis.run import Run
from vpd.config.targets import TokenData
from vpd.errors import RunError
from vpd.progress import Meter, bar_unless, training_meter
from vpd.targets import Target, recorded_forward
from vpd.targets.divergence import cross_entropy

CONTEXT = 3  # tokens before the one that follows
FEWEST_SEQUENCES, LEAST_PROBABILITY = 5, 0.5
# A subcomponent belongs to a continuation where its mean importance there is higher than elsewhere by this much.
CONTRAST = 0.2
EXAMINED = 40  # the likeliest, of which importances are looked at

Key = tuple[int, ...]


@dataclass(frozen=True)
class Learned:
    """A continuation of the evaluation data.

    Attributes:
        text: as ``TEXT=>NEXT``, which ``--on`` takes.
        sequences: how many have it.
        occurrences: how often it occurs.
        probability: geometric mean of what the network gives the next token.
        subcomponents: how many are more important there than elsewhere, by 0.2 on average.
    """

    text: str
    sequences: int
    occurrences: int
    probability: float
    subcomponents: int

    def as_record(self) -> dict[str, object]:
        """As plain values."""
        return dict(vars(self))


def learned_continuations(run: Run, batches: int, most: int, quiet: bool = False) -> list[Learned]:
    """Tokens that follow three others in several sequences, and that the network expects; fewest subcomponents first.

    Args:
        run: of a network that reads tokens.
        batches: of evaluation data.
        most: how many to give.
        quiet: no progress bar.

    Raises:
        RunError: a network without tokens, or nothing that repeats.
    """
    refuse_without_sequence(run, "--find")
    program = jax.jit(_cross_entropies)
    places: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
    ce: list[np.ndarray] = []
    with training_meter(2 * batches, 0, bar_unless(quiet), "looking for continuations", "step") as meter:
        tokens = [np.asarray(run.batch(i)) for i in range(batches)]
        for i, batch in enumerate(tokens):
            ce.append(np.asarray(program(run.experiment.target, jnp.asarray(batch))))
            for b, t in np.ndindex(batch.shape[0], batch.shape[1] - CONTEXT):
                places[tuple(batch[b, t : t + CONTEXT + 1].tolist())].append((i, b, t + CONTEXT - 1))
            meter(i + 1, {})
        found = {key: at for key, at in places.items() if len({place[:2] for place in at}) >= FEWEST_SEQUENCES}
        found = {key: at for key, at in found.items() if _probability(ce, at) >= LEAST_PROBABILITY}
        named = {key: text for key in found if (text := _text(run, key)) is not None}
        likeliest = sorted(named, key=lambda key: -_probability(ce, found[key]) * len(found[key]))[:EXAMINED]
        if not likeliest:
            raise RunError(
                f"no {CONTEXT} tokens are followed by an expected one in {FEWEST_SEQUENCES} sequences; "
                "give more --batches"
            )
        counts = _subcomponents(run, tokens, {key: found[key] for key in likeliest}, meter)
    rows = [
        Learned(
            named[key], len({p[:2] for p in found[key]}), len(found[key]), _probability(ce, found[key]), counts[key]
        )
        for key in likeliest
    ]
    return sorted(rows, key=lambda row: (row.subcomponents, -row.probability))[:most]


def _cross_entropies(target: Target, batch: Int[Array, "B T"]) -> Float[Array, "B T"]:
    return cross_entropy(recorded_forward(target, batch).output, jnp.roll(batch, -1, axis=-1))


def _probability(ce: Sequence[np.ndarray], at: Sequence[tuple[int, int, int]]) -> float:
    return float(np.exp(-np.mean([ce[i][b, t] for i, b, t in at])))


def _text(run: Run, key: Key) -> str | None:
    """As ``--on`` takes it; None where the text by itself has other tokens."""
    if not isinstance(run.config.data, TokenData):
        return f"{','.join(map(str, key[:-1]))}{ARROW}{key[-1]}"
    whole, before = run.tokenizer.decode(key), run.tokenizer.decode(key[:-1])
    text = f"{before}{ARROW}{whole.removeprefix(before)}"
    if not whole.startswith(before) or not text.isprintable() or text.count(ARROW) != 1:
        return None
    try:
        return text if continuation(run, text).tokens == key else None
    except RunError:
        return None


def _subcomponents(
    run: Run, tokens: Sequence[np.ndarray], found: dict[Key, list[tuple[int, int, int]]], meter: Meter
) -> dict[Key, int]:
    """How many subcomponents are more important at each continuation than on average."""
    total, positions = np.zeros(len(run.axis)), 0
    sums = {key: np.zeros(len(run.axis)) for key in found}
    for i, batch in enumerate(tokens):
        ci = run.causal_importances(jnp.asarray(batch))
        flat = run.axis.joined({site: np.asarray(x, np.float32) for site, x in ci.items()})
        total += flat.sum(axis=(0, 1), dtype=np.float64)
        positions += batch.size
        for key, at in found.items():
            for place, b, t in at:
                if place == i:
                    sums[key] += flat[b, t]
        meter(len(tokens) + i + 1, {})
    mean = total / positions
    return {key: int(np.sum(sums[key] / len(at) - mean > CONTRAST)) for key, at in found.items()}
