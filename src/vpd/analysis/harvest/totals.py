"""All that a pass adds up on the host: a state that is saved, gone on with, and merged with others."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from vpd.analysis.harvest.cofiring import DENSE_BYTES, CoFiring
from vpd.analysis.harvest.one_pass import Seen
from vpd.analysis.harvest.reservoir import Batch, Candidates, Reservoir, draw, load_windows, no_windows, priorities
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.harvest.tokens import MEMORY_BYTES, TokenTotals


class Totals:
    """Counts are int64 and exact, sums are float64.

    Attributes:
        batches: how many were added.
        positions: likewise.
        firing: at how many positions each subcomponent fires, ``[n]``.
        importance: sum of its lower causal importances over all positions, ``[n]``.
        activation: sum of its activations ``‖U_c‖ · x·V_c`` over all positions, ``[n]``.
        cofiring: of pairs.
        tokens: token statistics; None where the inputs are no tokens.
        sampled: windows sampled uniformly from where a subcomponent fires.
        top: windows where its activation is largest.
    """

    def __init__(
        self,
        settings: Settings,
        n: int,
        width: int,
        scratch: Path,
        dense_bytes: int = DENSE_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Nothing was read.

        Args:
            settings: of the harvest.
            n: number of subcomponents.
            width: entries of an example, where the inputs are no tokens.
            scratch: an existing folder, for what does not fit in memory.
            dense_bytes: what dense counts of pairs may take.
            memory_bytes: what output masses may take in memory.
        """
        self._settings, self._n, self._width = settings, n, width if settings.vocab is None else settings.length
        self._threshold = np.asarray(settings.threshold, np.float32)
        self.batches, self.positions = 0, 0
        self.firing = np.zeros(n, np.int64)
        self.importance, self.activation = np.zeros(n, np.float64), np.zeros(n, np.float64)
        self.cofiring = CoFiring(n, dense_bytes)
        self.tokens = None if settings.vocab is None else TokenTotals(n, settings.vocab, scratch, memory_bytes)
        inputs = np.zeros((0, width), np.float32) if self.tokens is None else np.zeros((0, settings.window), np.int32)
        has_tokens, context = self.tokens is not None, settings.context
        kinds = ((settings.n_random, np.uint64), (settings.n_top, np.float32))
        self.sampled, self.top = (
            Reservoir(n, k, context, has_tokens, no_windows(settings.window, inputs, kind)) for k, kind in kinds
        )

    def add(self, number: int, batch: Shaped[np.ndarray, "rows ..."], seen: Seen) -> None:
        """A batch of the stream.

        Args:
            number: of the batch in the stream.
            batch: its inputs.
            seen: what it shows.
        """
        ci, act = np.asarray(seen.importances), np.asarray(seen.activations)
        flat_ci, flat_act = (x.reshape(-1, self._n) for x in (ci, act))
        fires = flat_ci > self._threshold
        positions, fired = np.divmod(np.flatnonzero(fires), self._n)
        counts = np.bincount(fired, minlength=self._n)
        active = np.flatnonzero(counts)
        self.batches += 1
        self.positions += len(flat_ci)
        self.firing += counts
        self.importance += flat_ci.sum(axis=0, dtype=np.float64)
        self.activation += flat_act.sum(axis=0, dtype=np.float64)
        self.cofiring.add(len(flat_ci), positions, fired)
        if self.tokens is not None:
            self.tokens.add(seen, batch.reshape(-1), self._threshold, active, positions, fired)
        self._add_windows(number * len(batch), batch, seen, positions, fired, ci, act)

    def _add_windows(
        self,
        first: int,
        inputs: Shaped[np.ndarray, "rows ..."],
        seen: Seen,
        positions: Int[np.ndarray, " m"],
        fired: Int[np.ndarray, " m"],
        ci: Float[np.ndarray, "rows T n"],
        act: Float[np.ndarray, "rows T n"],
    ) -> None:
        rows, T, n = ci.shape
        batch = Batch(first, inputs.reshape(rows, -1)[:, : self._width], ci, act)
        example, position = np.divmod(positions, T)
        of_position = priorities(self._settings.seed, *(np.divmod(np.arange(rows * T) + first * T, T)), T)
        key = draw(of_position[positions], fired)
        which = self.sampled.promising(fired, key)
        self.sampled.add(Candidates(fired[which], key[which], example[which], position[which]), batch)
        peaks = np.asarray(seen.peaks).reshape(-1)
        firing = np.flatnonzero(peaks >= 0)
        example, owner = np.divmod(firing, n)
        key = -peaks[firing]
        which = self.top.promising(owner, key)
        places = np.asarray(seen.places).reshape(-1)[firing[which]]
        self.top.add(Candidates(owner[which], key[which], example[which], places), batch)

    def merge(self, other: "Totals") -> None:
        """Add what another shard has read."""
        self.batches += other.batches
        self.positions += other.positions
        self.firing += other.firing
        self.importance += other.importance
        self.activation += other.activation
        self.cofiring.merge(other.cofiring)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        self.sampled.put(other.sampled.windows)
        self.top.put(other.top.windows)

    def save(self, folder: Path) -> None:
        """Into a folder that is empty."""
        sums = {name: getattr(self, name) for name in ("batches", "positions", "firing", "importance", "activation")}
        np.savez(folder / "sums.npz", **sums)
        self.cofiring.save(folder)
        if self.tokens is not None:
            self.tokens.save(folder, np.flatnonzero(self.firing))
        self.sampled.windows.save(folder / "sampled.npz")
        self.top.windows.save(folder / "top.npz")

    def load(self, path: Path) -> None:
        """What :meth:`save` wrote, into totals that are still empty."""
        with np.load(path / "sums.npz") as sums:
            self.batches, self.positions = int(sums["batches"]), int(sums["positions"])
            self.firing, self.importance, self.activation = (sums[k] for k in ("firing", "importance", "activation"))
        self.cofiring.load(path)
        if self.tokens is not None:
            self.tokens.load(path)
        self.sampled.put(load_windows(path / "sampled.npz"))
        self.top.put(load_windows(path / "top.npz"))
