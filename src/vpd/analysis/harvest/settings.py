"""What a harvest is asked to be; its shards and its continuation must be asked for the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from vpd.errors import RunError

SCHEMA_VERSION = 1
KIND = "harvest"


@dataclass(frozen=True)
class Settings:
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

    def dump(self) -> str:
        """As ``plan.json``."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    def differences(self, other: "Settings") -> list[str]:
        """Which fields differ, each with both values."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [f"{name} {mine} and not {theirs}" for name, mine, theirs in pairs if mine != theirs]


def read_settings(content: bytes, where: str) -> Settings:
    """What :meth:`Settings.dump` wrote.

    Raises:
        RunError: another schema, or content that is none of ours.
    """
    try:
        found: Mapping[str, object] = json.loads(content)
        version = found["schema_version"]
        if version == SCHEMA_VERSION:
            return Settings(**{f.name: found[f.name] for f in fields(Settings)})  # pyright: ignore[reportArgumentType]  # as they were dumped
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{where} can't be read ({type(error).__name__}); begin anew with --force") from None
    raise RunError(
        f"{where} has schema version {version}, and this version of vpd reads {SCHEMA_VERSION}; "
        "go on with the version that began it, or give another --name"
    )
