"""The house: a room imports only from rooms below it, every module says what it is for, no private dialect."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "vpd"
ROOMS = (
    "errors",
    "randomness",
    "signals",
    "submission",
    "rotary",
    "run_directory",
    "cache",
    "machine",
    "placement",
    "hosts",
    "decomposition",
    "config",
    "importance",
    "data",
    "targets",
    "objective",
    "training",
    "evaluation",
    "progress",
    "experiment",
    "records",
    "nonfinite",
    "recorder",
    "run",
    "planning",
    "pretrain",
    "analysis",
    "face",
    "commands",
    "cli_options",
    "cli_looking",
    "cli",
)
MODULES = sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: write imports from the top"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("vpd.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down(path: Path) -> None:
    if path in (SRC / "__init__.py", SRC / "__main__.py"):
        return
    height = ROOMS.index(room(path))
    upwards = {other for other in imported_rooms(path) if ROOMS.index(other) > height}
    assert not upwards, f"{path.relative_to(SRC)} reaches up into {sorted(upwards)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_module_says_what_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    assert len(path.read_text().splitlines()) <= 500, f"{path}: look for the seam"


def test_mathematics_knows_no_files() -> None:
    """The core is functions of arrays: outside its doors it reads no configuration, opens and prints nothing."""
    doors = {"build.py", "traced_build.py", "weights.py"}
    for name in ("decomposition", "importance", "objective", "targets"):
        for path in sorted((SRC / name).rglob("*.py")):
            if path.name in doors or path.parent.name == "checkpoint":
                continue
            assert not imported_rooms(path) & {"config", "run_directory"}, path
            calls = {
                n.func.id
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            assert not calls & {"open", "print"}, path
