"""What attributions over data have added up so far, and what they were asked to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from vpd.analysis.parts import Plan
from vpd.errors import RunError

FILE = "sums.npz"


@dataclass(frozen=True)
class Asked(Plan):
    """Attributions over data.

    Attributes:
        step: of the checkpoint.
        batches: of the evaluation stream.
        targets: glob over sites.
        outputs: at most so many tokens.
    """

    schema_version: ClassVar[int] = 1

    step: int
    batches: int
    targets: str
    outputs: int


@dataclass
class Sums:
    """Signed and absolute attributions, not yet normalised.

    Attributes:
        rows: of the chosen targets of each site, to every source: ``{site: [2, n, sources]}``.
        done: targets over all batches, in the order in which they are taken.
    """

    rows: dict[str, Float[np.ndarray, "2 _n _s"]]
    done: int = 0

    def save(self, folder: Path) -> None:
        """Into a folder that is empty."""
        np.savez(folder / FILE, *self.rows.values())

    def load(self, folder: Path, done: int) -> None:
        """What :meth:`save` wrote when so much was done, into sums over the same targets.

        Raises:
            RunError: a file that is damaged, or of other targets.
        """
        try:
            with (folder / FILE).open("rb") as stream, np.load(stream) as file:
                for i, rows in enumerate(self.rows.values()):
                    rows[:] = file[f"arr_{i}"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunError(
                f"{folder / FILE} can't be gone on from ({type(error).__name__}); remove {folder.parent}, "
                "and the same command begins anew"
            ) from None
        self.done = done
