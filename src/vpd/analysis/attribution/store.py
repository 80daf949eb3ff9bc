"""Attributions over data as they are kept in ``attributions/<name>/``: the strongest of every source and target."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vpd.analysis.artefacts import META, artefact_names, open_artefact
from vpd.analysis.names import FlatAxis, Subcomponent
from vpd.errors import RunError

KIND, SCHEMA_VERSION = "attributions", 1
DATASET, PROMPT = "dataset", "prompt"
ARRAYS = "attributions.npz"

Ranked = list[tuple[str, float]]


@dataclass(frozen=True)
class Attributions:
    """Attributions summed over data, normalised by the source's summed CI and the target's RMS activation.

    Ends of the network stand beside subcomponents: rows of an embedding that is not decomposed (``wte:17``), entries of
    an input (``input:3``) and of the output (``output:3``; of a language model the logit of a token where it is the
    likeliest one). The summed CI of an end is the number of its occurrences.

    Attributes:
        sources: their axis.
        targets: their axis.
        source: place of each entry's source, ``[n]``.
        target: place of its target.
        signed: ``Σ ∂a_t/∂a_s · a_s · ci_s``, normalised.
        absolute: the same of ``|a_t|``.
        mass: summed CI of every source.
        rms: of the activation of every target over the positions where it is one.
        positions: over how many positions.
    """

    sources: FlatAxis
    targets: FlatAxis
    source: Int[np.ndarray, " n"]
    target: Int[np.ndarray, " n"]
    signed: Float[np.ndarray, " n"]
    absolute: Float[np.ndarray, " n"]
    mass: Float[np.ndarray, " n_sources"]
    rms: Float[np.ndarray, " n_targets"]
    positions: int

    def top_sources(self, subcomponent: Subcomponent | str, k: int = 10, absolute: bool = False) -> Ranked:
        """The ``k`` strongest sources of a target, ``(name, value)``, the strongest first.

        Args:
            subcomponent: the target, as ``SITE:INDEX``.
            k: at most so many.
            absolute: those of ``|a_t|`` rather than of ``a_t``.

        Raises:
            RunError: no such target.
        """
        return self._top(_place(subcomponent, self.targets), self._by_target, self.source, self.sources, k, absolute)

    def top_targets(self, subcomponent: Subcomponent | str, k: int = 10, absolute: bool = False) -> Ranked:
        """The ``k`` strongest targets of a source, likewise."""
        return self._top(_place(subcomponent, self.sources), self._by_source, self.target, self.targets, k, absolute)

    @cached_property
    def _by_target(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        return _sorted(self.target)

    @cached_property
    def _by_source(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        return _sorted(self.source)

    def _top(
        self,
        place: int,
        order: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
        other: Int[np.ndarray, " n"],
        names: FlatAxis,
        k: int,
        absolute: bool,
    ) -> Ranked:
        entries, keys = order
        own = entries[np.searchsorted(keys, place) : np.searchsorted(keys, place, side="right")]
        values = (self.absolute if absolute else self.signed)[own]
        strongest = np.argsort(-np.abs(values), kind="stable")[:k]
        return [(str(names.at(int(other[own[i]]))), float(values[i])) for i in strongest if values[i] != 0]


def _sorted(places: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    order = np.argsort(places, kind="stable")
    return order, places[order]


def _place(subcomponent: Subcomponent | str, axis: FlatAxis) -> int:
    name = str(subcomponent)
    site, colon, index = name.rpartition(":")
    if not colon or site not in axis.sizes or not index.isdecimal() or int(index) >= axis.sizes[site]:
        known = ", ".join(f"{s}:0 to {C - 1}" for s, C in list(axis.sizes.items())[:12])
        raise RunError(f"no attributions are known of {name!r}; there are {known}")
    return axis.place(Subcomponent(site, int(index)))


def write_arrays(folder: Path, found: Attributions) -> None:
    """The arrays of a draft."""
    np.savez_compressed(
        folder / ARRAYS,
        source=found.source.astype(np.int32),
        target=found.target.astype(np.int32),
        signed=found.signed.astype(np.float32),
        absolute=found.absolute.astype(np.float32),
        mass=found.mass,
        rms=found.rms,
    )


def load_attributions(run: Path, name: str | None = None) -> Attributions:
    """Attributions over data.

    Args:
        run: the run directory.
        name: None takes the only ones over data there are; graphs of prompts are not counted.

    Raises:
        RunError: none, several without a name, a graph of a prompt, or another schema.
    """
    if name is None:
        names = [n for n in artefact_names(run, KIND) if f'"level": "{DATASET}"' in (run / KIND / n / META).read_text()]
        if len(names) != 1:
            found = (
                f"has several: {', '.join(names)}; say which" if names else f"has none; make some: vpd attribute {run}"
            )
            raise RunError(f"attributions over data: {run} {found}")
        name = names[0]
    artefact = open_artefact(run, KIND, SCHEMA_VERSION, name)
    facts = artefact.facts
    sources, targets, positions = (facts.get(key) for key in ("sources", "targets", "positions"))
    if facts.get("level") != DATASET or not isinstance(sources, dict) or not isinstance(targets, dict):
        raise RunError(f"{artefact.path} is the graph of a prompt; name attributions over data")
    with np.load(artefact.path / ARRAYS) as arrays:
        kept = {key: arrays[key] for key in arrays.files}
    return Attributions(FlatAxis(sources), FlatAxis(targets), **kept, positions=int(str(positions)))
