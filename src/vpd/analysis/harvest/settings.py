"""What a harvest is asked to be; its shards and its continuation must be asked for the same."""

from dataclasses import dataclass
from typing import ClassVar

from vpd.analysis.parts import Plan

SCHEMA_VERSION = 1
KIND = "harvest"


@dataclass(frozen=True)
class Settings(Plan):
    """A harvest, whoever does which part of it.

    Attributes:
        step: of the checkpoint.
        split: ``eval`` or ``train``: whose stream of batches is read.
        rows: examples a batch.
        batches: how many; shard i of n reads those with number ≡ i (mod n).
        length: positions a row.
        threshold: a subcomponent fires where its lower causal importance is above it.
        seed: of the sampled windows.
        n_random: windows a subcomponent, sampled uniformly from the positions where it fires.
        n_top: windows a subcomponent where its activation is largest, at most one a row.
        context: positions on each side of a window's own.
        shards: n.
        tokenizer: hash of the run's tokenizer; None where the inputs are no text or it was not at hand.
        vocab: number of tokens; None where the inputs are no tokens.
    """

    schema_version: ClassVar[int] = SCHEMA_VERSION

    step: int
    split: str
    rows: int
    batches: int
    length: int
    threshold: float
    seed: int
    n_random: int
    n_top: int
    context: int
    shards: int
    tokenizer: str | None
    vocab: int | None

    @property
    def positions(self) -> int:
        """How many are read in all."""
        return self.rows * self.batches * self.length

    @property
    def window(self) -> int:
        """Positions of a window: those beyond an end of the row are made up for at the other end."""
        return min(2 * self.context + 1, self.length)

    def own(self, shard: int) -> range:
        """Numbers of the batches that a shard reads."""
        return range(shard, self.batches, self.shards)
