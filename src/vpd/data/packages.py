"""Files that lie in an installed Python package, found without importing it."""

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from vpd.errors import VpdError

PREFIX = "package:"


def package_place(name: str) -> tuple[str, Path]:
    """The package and the path that ``package:NAME`` or ``package:NAME/INSIDE`` means.

    Raises:
        VpdError: where the package is not installed or has no such path.
    """
    asked, _, inside = name.removeprefix(PREFIX).partition("/")
    module = asked.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise VpdError(f"{name}: there is no installed package {asked}; pip install --no-deps {asked}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = Path(os.path.normpath(folder / inside))
    if not (path.is_relative_to(folder) and path.exists()):
        raise VpdError(f"{name}: the package {asked} has no {inside}; name a path inside it, or the package alone")
    return module, path


def package_version(module: str) -> str:
    """Version of the distribution that brought a package; empty where none says so."""
    for distribution in metadata.packages_distributions().get(module, []):
        return f"{distribution} {metadata.version(distribution)}"
    return ""
