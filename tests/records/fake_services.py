"""Packages in the place of wandb and tensorboardX, or nothing in their place, for one test."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

FAKES = Path(__file__).parent / "fakes"
PACKAGES = ("wandb", "tensorboardX")


class Fakes(NamedTuple):
    """The two modules."""

    wandb: ModuleType
    tensorboardX: ModuleType


def put_fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Put both packages on the path, freshly imported, until the test ends."""
    monkeypatch.syspath_prepend(FAKES)
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that the end of the test undoes the import
        del sys.modules[name]
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Fakes(*(import_module(name) for name in PACKAGES))


def take_away(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Leave neither package to be found; of wandb there is a folder of that name, as W&B leaves behind."""
    (folder / "wandb").mkdir()

    class Finder:
        """Looks for the two packages in that folder alone."""

        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
            return PathFinder.find_spec(name, [str(folder)] if name in PACKAGES else path, target)

    monkeypatch.setattr(sys, "meta_path", [Finder if finder is PathFinder else finder for finder in sys.meta_path])
    for name in PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
