"""What a figure is drawn from: plain arrays that wait in a file, and the folder of figures that is made of them.

An evaluation leaves its plates in ``figures/waiting-<step>.npz``, which costs it milliseconds, and a process of its own
draws them (``drawer.py``). What waits is drawn after all when a run that was killed goes on.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SITES = 12  # matrices that one figure can show legibly


class Plate(NamedTuple):
    """One figure that is to be drawn.

    Attributes:
        stem: its file name without the ending, by which captions know it.
        function: what draws it, as ``module.function`` of this room.
        arguments: of that function, in order: arrays, numbers and words, and lists and mappings of them.
    """

    stem: str
    function: str
    arguments: Sequence[object]


def waiting_file(figures: Path, step: int) -> Path:
    """Where the plates of an evaluation wait."""
    return figures / f"waiting-{step}.npz"


def waiting_steps(figures: Path) -> list[int]:
    """The evaluations whose figures are still to be drawn."""
    names = (path.stem.removeprefix("waiting-") for path in figures.glob("waiting-*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def leave_plates(figures: Path, step: int, plates: Sequence[Plate], beside: Mapping[str, Mapping[str, object]]) -> None:
    """Put the plates of an evaluation down, whole or not at all.

    Args:
        figures: folder of the run's figures.
        step: of the evaluation.
        plates: to draw.
        beside: content of JSON files that lie beside the figures, by their names.

    Raises:
        OSError: a disk that refuses.
    """
    arrays: dict[str, np.ndarray] = {}
    packed = [(plate.stem, plate.function, [_pack(item, arrays) for item in plate.arguments]) for plate in plates]
    said = json.dumps({"plates": packed, "beside": dict(beside)})
    buffer = io.BytesIO()
    np.savez(buffer, said=np.array(said), allow_pickle=False, **arrays)
    figures.mkdir(exist_ok=True)
    final = waiting_file(figures, step)
    draft = figures / f".{final.name}.{os.getpid()}"
    try:
        draft.write_bytes(buffer.getvalue())
        os.replace(draft, final)
    finally:
        draft.unlink(missing_ok=True)


def draw_plates(figures: Path, step: int) -> Path:
    """Draw what waits into ``figures/<step>``, which appears whole, and take the plates away; returns the folder.

    Raises:
        FileNotFoundError: nothing waits.
    """
    waiting = waiting_file(figures, step)
    plates, beside = _read(waiting)
    final = figures / str(step)
    draft = figures / f".{step}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    captions: dict[str, dict[str, str]] = {}
    for plate in plates:
        image, captions[plate.stem] = _drawn(plate)
        (draft / f"{plate.stem}.png").write_bytes(image)
    for name, content in {"captions.json": captions, **beside}.items():
        (draft / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.rename(draft, final)
    waiting.unlink(missing_ok=True)
    return final


def _drawn(plate: Plate) -> tuple[bytes, dict[str, str]]:
    """The PNG of a figure, and its caption."""
    from vpd.evaluation.figures import png  # matplotlib, which only what draws has to import

    module, function = plate.function.split(".")
    home = import_module(f"vpd.evaluation.{module}")
    figure: Figure = getattr(home, function)(*plate.arguments)
    return png(figure), _captions()[plate.stem]


def _captions() -> dict[str, dict[str, str]]:
    from vpd.evaluation import figures, induction_figures, language_figures  # as above

    return figures.CAPTIONS | induction_figures.CAPTIONS | language_figures.CAPTIONS


def _read(path: Path) -> tuple[list[Plate], dict[str, Mapping[str, object]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            plates = [
                Plate(stem, name, tuple(_unpack(item, file) for item in packed))
                for stem, name, packed in said["plates"]
            ]
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise OSError(f"{path.name} holds no plates ({error})") from None
    return plates, said["beside"]


def _pack(value: object, arrays: dict[str, np.ndarray]) -> object:
    """The value for JSON, its arrays put aside under names of their own."""
    match value:
        case np.ndarray():
            name = f"array_{len(arrays)}"
            arrays[name] = value
            return {"array": name}
        case Mapping():
            return {"block": {key: _pack(item, arrays) for key, item in value.items()}}
        case str() | int() | float() | None:
            return value
        case Sequence():
            return [_pack(item, arrays) for item in value]
        case _:
            raise TypeError(f"a plate can't hold a {type(value).__name__}")


def _unpack(packed: object, arrays: Mapping[str, np.ndarray]) -> object:
    match packed:
        case {"array": str(name)}:
            return arrays[name]
        case {"block": dict(block)}:
            return {str(key): _unpack(item, arrays) for key, item in block.items()}
        case list():
            return [_unpack(item, arrays) for item in packed]
        case str() | int() | float() | None:
            return packed
        case _:
            raise ValueError(f"{packed!r} stands for nothing that was packed")
