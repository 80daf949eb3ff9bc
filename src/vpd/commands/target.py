"""``vpd target``: what is in a file of weights, and whether it computes what a reference does."""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from vpd.config.targets import FileSpec, HFSpec, PackageSpec
from vpd.errors import RunError
from vpd.targets.checkpoint.load import PICKLES, Spec
from vpd.targets.checkpoint.packages import PACKAGES
from vpd.targets.checkpoint.parity import Parity, parity_report
from vpd.targets.checkpoint.safetensors_files import read_values
from vpd.targets.checkpoint.sizes import architecture


def target_command(name: str, model_class: str | None, reference: bool, as_json: bool) -> None:
    """Print the parity report, as a table or as one JSON object; tensors that don't fit are an error."""
    found = parity_report(spec_of(name, model_class), reference=reference)
    typer.echo(json.dumps(_plain(found)) if as_json else found.text())
    if not found.fit.whole:
        raise RunError(found.fit.sentence(found.source))


def spec_of(name: str, model_class: str | None = None) -> Spec:
    """The source that one word means: a local path, the name of a package, else a name on the hub.

    Raises:
        RunError: where it is none of them, or its architecture is not known.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix in {*PICKLES, ".gguf", ".safetensors"}:
        return FileSpec(kind="file", path=name, model_class=model_class or _class_beside(path))
    if name in PACKAGES:
        return PackageSpec(kind="package", name=name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        if model_class is None:
            raise RunError(f"{name} is not a local path; for a model of the hub give its --class too")
        return HFSpec(kind="hf", model_name=name, model_class=model_class)
    raise RunError(f"{name} is neither a local path, nor owner/model, nor one of {', '.join(PACKAGES)}")


def _class_beside(path: Path) -> str:
    if path.suffix in {".gguf", *PICKLES}:
        return "Llama"
    folder = path if path.is_dir() else path.parent
    return architecture(read_values(folder), where=str(folder)).__name__


def _plain(found: Parity) -> dict[str, object]:
    return {**asdict(found), "fits": found.fit.whole}
