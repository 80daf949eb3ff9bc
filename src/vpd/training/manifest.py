"""The manifest of a checkpoint: what was saved, leaf by leaf, with a checksum of its bytes."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from vpd.errors import RunError

MANIFEST_VERSION = 1
METADATA = "_CHECKPOINT_METADATA"

Leaf = Array | np.ndarray | jax.ShapeDtypeStruct
Leaves = Mapping[str, Leaf]


class DamagedCheckpointError(RunError):
    """A checkpoint that is not what was saved: incomplete, unreadable, or with other bytes."""

    def __init__(self, folder: Path, reason: str) -> None:
        """Say what is wrong with a step's folder."""
        super().__init__(
            f"checkpoint {folder.name} of {folder.parent.parent} is damaged ({reason}); "
            "restore the folder from a copy, or use an earlier step"
        )
        self.reason = reason


@dataclass(frozen=True)
class LeafRecord:
    """One array of a checkpoint.

    Attributes:
        shape: of the array.
        dtype: its name.
        crc32: of its bytes in row-major order, eight hexadecimal digits; empty where none was recorded.
    """

    shape: tuple[int, ...]
    dtype: str
    crc32: str = ""

    @classmethod
    def of(cls, leaf: Leaf) -> "LeafRecord":
        """The record of an array; of an abstract one without a checksum."""
        crc = "" if isinstance(leaf, jax.ShapeDtypeStruct) else checksum(leaf)
        return cls(tuple(leaf.shape), str(np.dtype(leaf.dtype)), crc)

    @property
    def form(self) -> str:
        """Type and shape as a message says them."""
        return f"{self.dtype}{list(self.shape)}"


Records = dict[str, LeafRecord]


@dataclass(frozen=True)
class Manifest:
    """What one checkpoint holds.

    Attributes:
        step: updates made when it was saved.
        items: ``{item: {path of a leaf: record}}``.
    """

    step: int
    items: Mapping[str, Records]

    @classmethod
    def of(cls, step: int, items: Mapping[str, Leaves]) -> "Manifest":
        """The manifest of what is about to be saved."""
        return cls(
            step, {item: {n: LeafRecord.of(leaf) for n, leaf in leaves.items()} for item, leaves in items.items()}
        )

    def as_document(self) -> dict[str, object]:
        """The manifest as JSON holds it."""
        return {"manifest": {"schema_version": MANIFEST_VERSION, **asdict(self)}}


def checksum(leaf: Array | np.ndarray) -> str:
    """CRC-32 of an array's bytes: it finds what disks and copies do, at a tenth of the cost of the write."""
    flat = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
    return f"{zlib.crc32(flat.view(np.uint8).data):08x}"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a step's folder; None in a checkpoint that was saved before there were any.

    Orbax keeps it in the file that says which items the folder holds, and the folder gets its name when all is written.

    Raises:
        DamagedCheckpointError: a file that is not there, cut short, or says something else.
    """
    try:
        document = json.loads((folder / METADATA).read_bytes())
        found = (document["custom_metadata"] or {}).get("manifest")
        if found is None:
            return None
        version, step = found["schema_version"], int(found["step"])
        items = {
            item: {
                name: LeafRecord(tuple(map(int, leaf["shape"])), str(leaf["dtype"]), str(leaf["crc32"]))
                for name, leaf in leaves.items()
            }
            for item, leaves in found["items"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(folder, f"{METADATA} can't be read: {type(error).__name__}") from None
    if version != MANIFEST_VERSION:
        raise RunError(f"{folder} was saved with manifest version {version}; open it with the version that wrote it")
    if step != int(folder.name):
        raise DamagedCheckpointError(folder, f"its manifest is of step {step}")
    return Manifest(step, items)
