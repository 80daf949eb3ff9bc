"""The parity report: how a file fits the model that is read from it, and whether both compute the same."""

import re
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vpd.targets.base import clean_forward
from vpd.targets.checkpoint.load import Spec, model_class, open_checkpoint
from vpd.targets.checkpoint.reference import reference_logits
from vpd.targets.checkpoint.sizes import abstract_language_model
from vpd.targets.checkpoint.tensors import (
    Checkpoint,
    Fit,
    fit,
    is_quantised,
    read_model,
    settled_values,
    storage_counts,
)
from vpd.targets.language_model import LanguageModel

_TOKENS = 256


@dataclass(frozen=True)
class Logits:
    """The comparison with a reference.

    Attributes:
        reference: its name.
        tokens: positions compared.
        max_difference: largest absolute difference of a logit.
        largest: largest absolute logit, to which the difference relates.
    """

    reference: str
    tokens: int
    max_difference: float
    largest: float


@dataclass(frozen=True)
class Parity:
    """What was found out about a file and its model.

    Attributes:
        source: file or folder.
        format: safetensors, gguf or npz.
        architecture: class of the model.
        parameters: number of weights.
        storage: number of tensors by the type they are stored in.
        sites: ``{name: (d_in, d_out)}`` of every matrix.
        fit: missing, unexpected and mis-shaped tensors.
        logits: the comparison, where it was asked for.
    """

    source: str
    format: str
    architecture: str
    parameters: int
    storage: dict[str, int]
    sites: dict[str, tuple[int, int]]
    fit: Fit
    logits: Logits | None

    def text(self) -> str:
        """The report as lines; sites of all layers are one row."""
        stored = ", ".join(f"{n} {kind}" for kind, n in self.storage.items())
        lines = [
            f"{self.source}: {self.architecture}, {self.parameters:,} parameters",
            f"stored as {self.format}: {stored} tensors",
            *(
                ["quantised: the network is the one of the numbers that the file stands for"]
                * is_quantised(self.storage)
            ),
            *_site_rows(self.sites),
            "every tensor fits" if self.fit.whole else self.fit.sentence(self.source),
        ]
        if self.logits is not None:
            lines.append(
                f"max |logit difference| to {self.logits.reference} over {self.logits.tokens} tokens: "
                f"{self.logits.max_difference:.2e} (largest logit {self.logits.largest:.1f})"
            )
        return "\n".join(lines)


def _site_rows(sites: dict[str, tuple[int, int]]) -> list[str]:
    """Sites by shape, layers folded: ``h.*.mlp.c_fc  768 × 2048  (12)``."""
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for name, shape in sites.items():
        folded = re.sub(r"\.\d+\.", ".*.", name)
        counts[folded, shape] = counts.get((folded, shape), 0) + 1
    width = max(len(name) for name, _ in counts)
    return [f"  {name:{width}s}  {a:6d} × {b:<6d} ({n})" for (name, (a, b)), n in counts.items()]


def parity_report(
    spec: Spec, dtype: str = "float32", reference: bool = False, tokens: Int[np.ndarray, "B T"] | None = None
) -> Parity:
    """Compare a file with the model that its configuration describes, and with a reference implementation.

    Tensors that don't fit are listed rather than refused; weights are read only for the reference.

    Args:
        spec: as in a run file.
        dtype: of the weights.
        reference: whether to compare logits, where everything fits.
        tokens: to compare on; 256 random ones by default.

    Raises:
        RunError: where the file can't be opened, or the reference is not installed.
    """
    checkpoint, named = open_checkpoint(spec), model_class(spec)
    abstract = abstract_language_model(
        settled_values(checkpoint), named, dtype, f"the configuration of {checkpoint.source}"
    )
    found = fit(checkpoint, abstract)
    logits = _compare(checkpoint, read_model(checkpoint, named, dtype), tokens) if reference and found.whole else None
    return Parity(
        source=checkpoint.source,
        format=checkpoint.format,
        architecture=type(abstract).__name__,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract)),
        storage=storage_counts(checkpoint),
        sites={name: (d_in, d_out) for name, (d_in, d_out, _) in abstract.matrices().items()},
        fit=found,
        logits=logits,
    )


def _compare(checkpoint: Checkpoint, model: LanguageModel, tokens: Int[np.ndarray, "B T"] | None) -> Logits:
    if tokens is None:
        length, vocab = min(_TOKENS, model.max_len), model.matrices()["lm_head"][1]
        tokens = np.random.default_rng(0).integers(vocab, size=(1, length))
    name, want = reference_logits(Path(checkpoint.source), model, tokens)
    got = np.asarray(jax.jit(lambda m, x: clean_forward(m, x)[0])(model, jnp.asarray(tokens)), np.float32)
    return Logits(name, tokens.size, float(np.abs(got - want).max()), float(np.abs(want).max()))
