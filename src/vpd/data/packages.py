"""Files that lie in an installed Python package, found without importing it."""

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
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise VpdError(f"{name}: the package {asked} has no {inside}; name a path inside it, or the package alone")
    return module, path


def package_version(module: str) -> str:
    """Version of the distribution that brought a package; empty where none says so."""
    for distribution in metadata.packages_distributions().get(module, []):
        return f"{distribution} {metadata.version(distribution)}"
    return ""
