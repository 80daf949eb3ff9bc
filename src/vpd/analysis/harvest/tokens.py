"""What is read where a subcomponent fires, and what the model then expects: counts and masses over the vocabulary."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap

from vpd.analysis.harvest.blocks import blocks, padded
from vpd.analysis.harvest.one_pass import Seen, masses
from vpd.analysis.harvest.sparse import SparseCounts

# Masses that take more bytes lie in a file instead of in memory.
MEMORY_BYTES = 1 << 30
ROWS_AT_ONCE = 256


class TokenTotals:
    """Token statistics of all subcomponents.

    Input counts are exact. Output masses are float64 sums over batches of the sums within a batch, which are float32:
    the device has no other type. Rows of subcomponents that never fire take no memory, and none are written.

    Attributes:
        inputs: how often each token was read where each subcomponent fires.
        input_totals: how often each token was read, ``[vocab]`` int64.
        output_totals: the model's output distribution summed over all positions, ``[vocab]`` float64.
    """

    def __init__(self, n: int, vocab: int, scratch: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        """Nothing was read.

        Args:
            n: number of subcomponents.
            vocab: number of tokens.
            scratch: an existing folder, for masses that don't fit in memory.
            memory_bytes: what they may take there.
        """
        self.inputs = SparseCounts((n, vocab))
        self.input_totals = np.zeros(vocab, np.int64)
        self.output_totals = np.zeros(vocab, np.float64)
        in_memory = n * vocab * 8 <= memory_bytes
        # A file that is mostly holes takes little room on disk.
        self.mass: Float[np.ndarray, "n vocab"] = (
            np.zeros((n, vocab))
            if in_memory
            else open_memmap(scratch / "mass.scratch.npy", mode="w+", dtype=np.float64, shape=(n, vocab))
        )

    def add(
        self,
        seen: Seen,
        tokens: Int[np.ndarray, " N"],
        threshold: Float[np.ndarray, ""],
        active: Int[np.ndarray, " k"],
        positions: Int[np.ndarray, " m"],
        fired: Int[np.ndarray, " m"],
    ) -> None:
        """A batch; arguments as of the counts that go with it."""
        assert seen.probabilities is not None
        vocab = len(self.input_totals)
        self.inputs.add_pairs(fired, tokens[positions])
        self.input_totals += np.bincount(tokens, minlength=vocab)
        self.output_totals += np.asarray(seen.probabilities).sum(axis=0, dtype=np.float64)
        for part in blocks(active, vocab):
            chosen = jnp.asarray(padded(part))
            found = masses(seen.importances, jnp.asarray(threshold), chosen, seen.probabilities)
            self.mass[part] += np.asarray(found)[: len(part)]

    def merge(self, other: "TokenTotals") -> None:
        """Add what another pass has summed."""
        self.inputs.add(other.inputs.matrix())
        self.input_totals += other.input_totals
        self.output_totals += other.output_totals
        for begin in range(0, len(self.mass), ROWS_AT_ONCE):
            self.mass[begin : begin + ROWS_AT_ONCE] += other.mass[begin : begin + ROWS_AT_ONCE]

    def save(self, folder: Path, fired: Int[np.ndarray, " k"]) -> None:
        """For :meth:`load`; only the rows of subcomponents that fired."""
        self.inputs.save(folder, "input_tokens")
        np.savez(folder / "token_totals.npz", inputs=self.input_totals, outputs=self.output_totals)
        self.save_mass(folder / "output_mass.npy", fired)

    def save_mass(self, path: Path, fired: Int[np.ndarray, " k"]) -> None:
        """The masses of some subcomponents, ``[k, vocab]``."""
        np.save(path.with_name("output_rows.npy"), fired)
        written = open_memmap(path, mode="w+", dtype=np.float64, shape=(len(fired), self.mass.shape[1]))
        for begin in range(0, len(fired), ROWS_AT_ONCE):
            written[begin : begin + ROWS_AT_ONCE] = self.mass[fired[begin : begin + ROWS_AT_ONCE]]
        written.flush()

    def load(self, folder: Path) -> None:
        """What :meth:`save` wrote."""
        self.inputs.load(folder, "input_tokens")
        with np.load(folder / "token_totals.npz") as totals:
            self.input_totals, self.output_totals = totals["inputs"], totals["outputs"]
        fired, stored = np.load(folder / "output_rows.npy"), np.load(folder / "output_mass.npy", mmap_mode="r")
        for begin in range(0, len(fired), ROWS_AT_ONCE):
            self.mass[fired[begin : begin + ROWS_AT_ONCE]] = stored[begin : begin + ROWS_AT_ONCE]
