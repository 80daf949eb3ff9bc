"""From a run file's `target` block to a frozen network; toys are trained in-process, once per content."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from jaxtyping import Array, Float, Int, Shaped

from vpd.cache import cache_directory
from vpd.config.targets import InductionTarget, ResidMLPTarget, StoredTarget, TMSTarget, ToyTarget
from vpd.errors import RunError
from vpd.run_directory import write_atomically
from vpd.targets.induction import Induction, init_induction, pretrain_induction
from vpd.targets.pretraining import Progress, unseen
from vpd.targets.resid_mlp import ResidMLP, init_resid_mlp, pretrain_resid_mlp
from vpd.targets.tms import TMS, init_tms, pretrain_tms
from vpd.targets.weights import NAMES, Toy, load_target, target_bytes

# Part of the cache key: raise it when pretraining changes what it computes.
RECIPE = 1

CLASSES: dict[str, type] = {"tms": TMS, "resid_mlp": ResidMLP, "induction": Induction}
Watch = Callable[[int], AbstractContextManager[Progress]]
Draw = Callable[[Int[Array, ""]], Shaped[Array, "batch ..."]]


def load_stored(config: StoredTarget, kind: str) -> Toy:
    """The target of a local ``run_path``: a weights file, or ``target.safetensors`` in a run directory.

    Raises:
        RunError: where it can't be read or is another kind of target than the sites to decompose mean.
    """
    path = Path(config.run_path).expanduser()
    path = path / "target.safetensors" if path.is_dir() else path
    target = load_target(path)
    if not isinstance(target, CLASSES[kind]):
        raise RunError(
            f"{path} holds a {NAMES[type(target)]}, and pd.decomposition_targets names sites of a "
            f"{NAMES[CLASSES[kind]]}; name sites that it has, or give another target.run_path"
        )
    return target


def fresh_target(config: ToyTarget) -> Toy:
    """The network of a target block before it is trained."""
    seed = config.pretrain.seed
    match config:
        case TMSTarget():
            return init_tms(config.n_features, config.n_hidden, config.n_hidden_layers, seed)
        case ResidMLPTarget():
            return init_resid_mlp(
                config.n_features,
                config.d_embed,
                config.d_mlp,
                config.n_layers,
                config.act_fn_name,
                config.in_bias,
                config.out_bias,
                config.fixed_identity_embedding,
                seed,
            )
        case InductionTarget():
            return init_induction(config.vocab, config.d_model, config.n_layers, config.n_heads, config.seq_len, seed)


def pretrain(
    fresh: Toy, draw: Draw, steps: int, lr: float, progress: Progress = unseen
) -> tuple[Toy, Float[Array, ""]]:
    """The trained target and its last loss."""
    match fresh:
        case TMS():
            return pretrain_tms(fresh, draw, steps, lr, progress)
        case ResidMLP():
            return pretrain_resid_mlp(fresh, draw, steps, lr, progress)
        case Induction():
            return pretrain_induction(fresh, draw, steps, lr, progress)


def build_toy(config: ToyTarget, data: dict[str, object] | None, draw: Draw, watch: Watch) -> Toy:
    """The trained target of a run file, from the cache where it was trained before.

    Args:
        config: the target block.
        data: the data block as plain values, part of the cache key.
        draw: the pretraining batch of a step.
        watch: what shows the progress of so many steps.
    """
    content = json.dumps([RECIPE, config.model_dump(mode="json"), data], sort_keys=True)
    name = f"{config.tag}-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"
    path = cache_directory() / "targets" / name
    if not path.exists():
        with watch(config.pretrain.steps) as progress:
            trained, _ = pretrain(fresh_target(config), draw, config.pretrain.steps, config.pretrain.lr, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, target_bytes(trained))
    # Read back: the first run and later ones start from the same bytes.
    return load_target(path)
