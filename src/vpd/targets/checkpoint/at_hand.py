"""What is known of a model without its weights: the configuration that lies on this machine, nothing fetched."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from vpd.config.targets import FileSpec, HFSpec, PackageSpec, PretrainedSpec
from vpd.errors import RunError
from vpd.targets.checkpoint.load import Spec, open_checkpoint
from vpd.targets.checkpoint.safetensors_files import CONFIG, read_values
from vpd.targets.checkpoint.sizes import Values
from vpd.targets.checkpoint.tensors import settled_values


@dataclass(frozen=True)
class Known:
    """A model's configuration.

    Attributes:
        values: as of ``config.json``.
        source: the file or folder they are from.
    """

    values: Values
    source: str


def config_at_hand(spec: Spec) -> Known | None:
    """The configuration of a model that lies on this machine, in the cache of the hub included; None where none does.

    Raises:
        RunError: where it is there and can't be read, or a package is not installed.
    """
    match spec:
        case HFSpec():
            folder = _cached(spec.model_name)
            return None if folder is None else Known(read_values(folder), f"the local copy of {spec.model_name}")
        case FileSpec(path=place) | PretrainedSpec(run_path=place):
            if not Path(place).expanduser().exists():
                return None
        case PackageSpec():
            pass
    checkpoint = open_checkpoint(spec)
    return Known(settled_values(checkpoint), checkpoint.source)


def _cached(name: str) -> Path | None:
    """Folder of the model in the cache of the hub."""
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ModuleNotFoundError:
        return None
    try:
        found = hub.try_to_load_from_cache(name, CONFIG)
    except errors.HFValidationError:
        raise RunError(f"{name!r} is no name on the hub; write owner/model, or kind: file with a local path") from None
    return Path(found).parent if isinstance(found, str) else None
