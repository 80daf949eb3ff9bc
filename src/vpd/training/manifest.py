"""The manifest of a checkpoint: what was saved, leaf by leaf, with a checksum of its bytes."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
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
        parts: in its place, of an array that no process held whole: checksums of its parts by their ranges,
            ``"0:4,8:16"``.
    """

    shape: tuple[int, ...]
    dtype: str
    crc32: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, leaf: Leaf) -> "LeafRecord":
        """The record of an array that is here; of an abstract one without a checksum."""
        crc = "" if isinstance(leaf, jax.ShapeDtypeStruct) else checksum(leaf)
        return cls(tuple(leaf.shape), str(np.dtype(leaf.dtype)), crc)

    @property
    def form(self) -> str:
        """Type and shape as a message says them."""
        return f"{self.dtype}{list(self.shape)}"

    def is_of(self, array: np.ndarray) -> bool:
        """Whether an array is what was recorded."""
        if (tuple(array.shape), str(array.dtype)) != (self.shape, self.dtype):
            return False
        if self.crc32 and checksum(array) != self.crc32:
            return False
        return all(checksum(array[_slices(ranges)]) == crc for ranges, crc in self.parts.items())


def records_of(leaves: Leaves) -> "Records":
    """The record of every array; of one that is split over processes, which all ask together, by its parts."""
    found: Records = {}
    mine: dict[tuple[str, str], int] = {}
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            found[name] = LeafRecord.of(leaf)
            continue
        found[name] = LeafRecord(tuple(leaf.shape), str(np.dtype(leaf.dtype)))
        everywhere = leaf.sharding.devices_indices_map(leaf.shape).values()
        mine |= {(name, _ranges(index, leaf.shape)): 0 for index in everywhere}
        for shard in leaf.addressable_shards:
            mine[name, _ranges(shard.index, leaf.shape)] = int(checksum(np.asarray(shard.data)), 16)
    # A part that this process does not hold is 0 here, and in another what it is.
    told = multihost_utils.process_allgather(np.asarray(list(mine.values()), np.uint32)) if mine else np.zeros((1, 0))
    for (name, ranges), crc in zip(mine, told.max(axis=0), strict=True):
        found[name] = replace(found[name], parts={**found[name].parts, ranges: f"{int(crc):08x}"})
    return found


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in bounds)


def _slices(ranges: str) -> tuple[slice, ...]:
    return tuple(slice(*map(int, part.split(":"))) for part in ranges.split(",") if part)


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
        return cls(step, {item: records_of(leaves) for item, leaves in items.items()})

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
                name: LeafRecord(
                    tuple(map(int, leaf["shape"])), str(leaf["dtype"]), str(leaf["crc32"]), _checked(leaf.get("parts"))
                )
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


def _checked(parts: object) -> Mapping[str, str]:
    """Checksums of parts as they were written; ValueError or TypeError where they are not."""
    if not isinstance(parts, dict):
        return {}
    for ranges in parts:
        _slices(ranges)
    return {str(ranges): str(crc) for ranges, crc in parts.items()}
