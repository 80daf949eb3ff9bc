"""The door to language models: from a run file's ``target.spec`` to a frozen network."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from vpd.config.targets import FileSpec, HFSpec, PackageSpec, PretrainedSpec
from vpd.errors import RunError
from vpd.targets.checkpoint.gguf_file import open_gguf
from vpd.targets.checkpoint.packages import PACKAGES, open_package
from vpd.targets.checkpoint.safetensors_files import open_safetensors, pickle_sentence
from vpd.targets.checkpoint.sizes import Values, architecture, named_architecture
from vpd.targets.checkpoint.tensors import Checkpoint, is_quantised, read_model, storage_counts
from vpd.targets.language_model import LanguageModel

Spec = HFSpec | PretrainedSpec | FileSpec | PackageSpec
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
_HUB_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Facts:
    """Where a model came from.

    Attributes:
        source: file or folder.
        format: safetensors, gguf or npz.
        storage: number of tensors by the type they were stored in.
        values: the whole configuration beside the weights.
    """

    source: str
    format: str
    storage: dict[str, int]
    values: Values

    @property
    def quantised(self) -> bool:
        """Whether the weights are numbers that a quantised file stands for, rather than what was trained."""
        return is_quantised(self.storage)


def load_language_model(spec: Spec, dtype: str = "float32") -> tuple[LanguageModel, Facts]:
    """The model that a run file names, and where it came from.

    Args:
        spec: its ``target.spec``.
        dtype: of the weights: float32, bfloat16 or float16.

    Raises:
        RunError: one sentence, before any array is on a device.
    """
    checkpoint = open_checkpoint(spec)
    return read_model(checkpoint, model_class(spec), dtype), _facts(checkpoint)


def source_facts(spec: Spec) -> Facts:
    """Where a model comes from; nothing but its index is read."""
    return _facts(open_checkpoint(spec))


def _facts(checkpoint: Checkpoint) -> Facts:
    return Facts(checkpoint.source, checkpoint.format, storage_counts(checkpoint), checkpoint.values)


def model_class(spec: Spec) -> str | None:
    """The architecture that a spec names."""
    return None if isinstance(spec, PackageSpec) else spec.model_class


def open_checkpoint(spec: Spec) -> Checkpoint:
    """Open what a spec names; nothing but its index is read.

    Raises:
        RunError: where it is not there, can't be read, or is of another architecture.
    """
    if not isinstance(spec, PackageSpec):
        named_architecture(spec.model_class)
    match spec:
        case PackageSpec():
            return open_package(spec.name)
        case FileSpec():
            return open_path(Path(spec.path), spec.model_class)
        case PretrainedSpec():
            return open_path(_run_folder(spec.run_path), spec.model_class)
        case HFSpec():
            return open_path(_hub_folder(spec.model_name), spec.model_class)


def open_path(path: Path, model_class: str | None = None) -> Checkpoint:
    """Open a local file or folder.

    Raises:
        RunError: as :func:`open_checkpoint`.
    """
    path = path.expanduser()
    if path.suffix in PICKLES and not path.is_dir():
        raise RunError(pickle_sentence(path))
    if path.suffix != ".gguf":
        return open_safetensors(path, model_class)
    found = open_gguf(path)
    architecture(found.values, model_class, str(path))
    return found


def _run_folder(run_path: str) -> Path:
    folder = Path(run_path).expanduser()
    if not folder.is_dir():
        raise RunError(
            f"{run_path} is no local folder, and runs of an account are not fetched; give the run directory of "
            "vpd pretrain, or download the weights as safetensors and write kind: file with their path, or take a "
            f"model that ships in a package: kind: package with name {' or '.join(PACKAGES)}"
        )
    return folder


def _hub_folder(name: str) -> Path:
    """The model's folder in the local cache of the hub, downloaded where it is not there."""
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ModuleNotFoundError:
        raise RunError(
            f"{name} is a model of the hub, which is reached with an extra that is not installed; "
            "pip install 'vpd-jax[hub]', or write kind: file with a local path"
        ) from None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=True))
    except errors.HFValidationError:
        raise RunError(f"{name!r} is no name on the hub; write owner/model, or kind: file with a local path") from None
    except errors.LocalEntryNotFoundError:
        pass
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"{name} is not in the local cache of the hub, and the hub did not give it ({type(error).__name__}); "
            "download it where there is a network, and write kind: file with its path"
        ) from None
