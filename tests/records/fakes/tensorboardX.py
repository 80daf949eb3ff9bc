"""Stands in for the package tensorboardX: keeps what it is told, and makes its folder as that does."""

from pathlib import Path
from typing import Any  # it takes whatever it is given

WRITERS: list["SummaryWriter"] = []
FAILS_AT = ""


class SummaryWriter:
    def __init__(self, logdir: str, purge_step: int | None, flush_secs: float, filename_suffix: str) -> None:
        if FAILS_AT == "init":
            raise OSError(28, "No space left on device")
        Path(logdir).mkdir(exist_ok=True)
        (Path(logdir) / f"events{filename_suffix}").touch(exist_ok=False)
        self.folder, self.purge_step, self.is_closed = Path(logdir), purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int]] = []
        WRITERS.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC" and str(pixels.dtype) == "uint8"
        self.images.append((name, pixels.shape, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True
