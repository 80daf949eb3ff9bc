"""From a run file's `target` block to a frozen network; toys are trained in-process, once per content."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Array, Float, Int

from vpd.config.targets import TMSTarget
from vpd.run_directory import write_atomically
from vpd.targets.tms import TMS, init_tms, pretrain_tms
from vpd.targets.weights import load_tms, tms_bytes

# Part of the cache key: raise it when pretraining changes what it computes.
RECIPE = 1

Draw = Callable[[Int[Array, ""]], Float[Array, "batch f"]]


def cache_directory() -> Path:
    """The user's folder for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpd"


def stored_weights(path: Path) -> Path:
    """The weights file that a local ``run_path`` means: itself, or ``target.safetensors`` in a run directory."""
    return path / "target.safetensors" if path.is_dir() else path


def build_tms(config: TMSTarget, data: dict[str, object], draw: Draw) -> TMS:
    """The trained TMS of a run file, from the cache where it was trained before.

    Args:
        config: the target block.
        data: the data block as plain values, part of the cache key.
        draw: the pretraining batch of a step.
    """
    content = json.dumps([RECIPE, config.model_dump(mode="json"), data], sort_keys=True)
    path = cache_directory() / "targets" / f"tms-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        return load_tms(path)
    fresh = init_tms(config.n_features, config.n_hidden, config.n_hidden_layers, config.pretrain.seed)
    trained, _ = pretrain_tms(fresh, draw, config.pretrain.steps, config.pretrain.lr)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tms_bytes(trained))
    # Read back: the first run and later ones start from the same bytes.
    return load_tms(path)
