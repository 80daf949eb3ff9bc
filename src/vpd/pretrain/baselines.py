"""What counting alone predicts: unigram and bigram cross-entropies, which a trained model must beat."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

Rows = Int32[np.ndarray, "_rows _length"]  # a text comes in blocks of different sizes

# Weights of the unigram that are tried; each is a number of imagined observations after every token.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
HELD_OUT = 10  # every tenth row of the training text chooses among them
COUNTED_TOKENS = 50_000_000  # more change a bigram little


@dataclass(frozen=True)
class Baselines:
    """Cross-entropies in nats a token, on the rows that the model is evaluated on.

    Attributes:
        unigram: of ``(n(b) + 1) / (N + V)``.
        bigram: of ``(n(ab) + κ p(b)) / (n(a·) + κ)`` with the unigram p (MacKay & Peto 1995).
        strength: κ, chosen on training rows alone.
        tokens: training predictions that were counted.
    """

    unigram: float
    bigram: float
    strength: float
    tokens: int


class Counts:
    """Counts of tokens and of neighbours inside rows."""

    def __init__(self, rows: Iterable[Rows], vocab: int) -> None:
        """Count; only what follows another token in its row is a prediction."""
        self.vocab = vocab
        self.after = np.zeros(vocab, np.int64)
        self.before = np.zeros(vocab, np.int64)
        parts: list[tuple[Int64[np.ndarray, " _n"], Int64[np.ndarray, " _n"]]] = []
        for block in rows:
            first, second = block[:, :-1].ravel(), block[:, 1:].ravel()
            self.before += np.bincount(first, minlength=vocab)
            self.after += np.bincount(second, minlength=vocab)
            parts.append(np.unique(first.astype(np.int64) * vocab + second, return_counts=True))
        self._pairs, self._numbers = _summed(parts)

    def of_pairs(self, first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " _n"]:
        """How often each second token follows each first one."""
        wanted = first.astype(np.int64) * self.vocab + second
        if not len(self._pairs):
            return np.zeros(len(wanted), np.int64)
        at = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        return np.where(self._pairs[at] == wanted, self._numbers[at], 0)

    def unigram(self) -> Float[np.ndarray, " vocab"]:
        """Add-one estimate of every token."""
        return (self.after + 1) / (self.after.sum() + self.vocab)

    def bigram_losses(self, rows: Rows, strength: float) -> Float[np.ndarray, " _n"]:
        """``−log p(b | a)`` of every prediction in these rows."""
        first, second = rows[:, :-1].ravel(), rows[:, 1:].ravel()
        prior = self.unigram()[second]
        return -np.log((self.of_pairs(first, second) + strength * prior) / (self.before[first] + strength))

    def unigram_losses(self, rows: Rows) -> Float[np.ndarray, " _n"]:
        """``−log p(b)`` of every prediction in these rows."""
        return -np.log(self.unigram()[rows[:, 1:].ravel()])


def baselines(train: Iterable[Rows], evaluated: Rows, vocab: int) -> Baselines:
    """Count on training rows, choose the strength on a tenth of them, measure on the evaluated rows.

    Args:
        train: blocks of training rows.
        evaluated: rows of the evaluation split.
        vocab: number of tokens.
    """
    blocks = list(train)
    kept = Counts((_part(block, held_out=False) for block in blocks), vocab)
    strength = _best_strength(kept, [_part(block, held_out=True) for block in blocks])
    counts = Counts(blocks, vocab)
    unigram, bigram = counts.unigram_losses(evaluated), counts.bigram_losses(evaluated, strength)
    return Baselines(float(unigram.mean()), float(bigram.mean()), strength, int(counts.after.sum()))


def limited(blocks: Iterable[Rows], tokens: int = COUNTED_TOKENS) -> Iterator[Rows]:
    """Blocks of rows, until they hold so many tokens."""
    left = tokens
    for block in blocks:
        if left <= 0:
            return
        yield block
        left -= block.size


def _part(block: Rows, held_out: bool) -> Rows:
    chosen = np.arange(len(block)) % HELD_OUT == HELD_OUT - 1
    return block[chosen if held_out else ~chosen]


def _best_strength(counts: Counts, held_out: list[Rows]) -> float:
    """The strength with the least loss on rows that were not counted; 1 where there are none."""
    rows = [block for block in held_out if len(block)]
    if not rows:
        return 1.0
    return min(STRENGTHS, key=lambda k: sum(float(counts.bigram_losses(block, k).sum()) for block in rows))


def _summed(
    parts: list[tuple[Int64[np.ndarray, " _n"], Int64[np.ndarray, " _n"]]],
) -> tuple[Int64[np.ndarray, " _m"], Int64[np.ndarray, " _m"]]:
    """Sorted keys and the sum of their numbers."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys = np.concatenate([keys for keys, _ in parts])
    numbers = np.concatenate([numbers for _, numbers in parts])
    found, place = np.unique(keys, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, place, numbers)
    return found, sums
