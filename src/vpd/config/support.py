"""What the vocabulary names and this version does not build yet, refused by name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpd.config.block import refusal, show
from vpd.config.run import RunConfig
from vpd.config.targets import StoredTarget
from vpd.config.values import is_block, is_list

_ACCOUNT_BOUND = re.compile(
    r"(wandb:.*)|(wandb://.*)|(https?://.*)|([\w.-]+/[\w.-]+/(runs/)?[\w-]+)|([\w.-]+/runs/[\w-]+)"
)


@dataclass(frozen=True)
class Gap:
    """A key whose values are not built: those named, or any that is not null when none is named."""

    key: str
    what: str
    instead: str
    values: tuple[object, ...] | None = None

    def refuses(self, value: object) -> bool:
        """Whether this version can't do what the value asks for."""
        return value is not None if self.values is None else value in self.values


GAPS: tuple[Gap, ...] = (
    Gap(
        "target.activation_checkpointing",
        "rematerialising the target alone",
        "write runtime.remat: block, which does it layer by layer",
        (True,),
    ),
)


def check_supported(config: RunConfig) -> None:
    """Refuse what this version does not build.

    Raises: ConfigError naming the first such key, and what to write instead.
    """
    _check_target(config)
    document = config.model_dump(mode="json")
    for gap in GAPS:
        for key, value in _values_at(gap.key, document):
            if gap.refuses(value):
                raise refusal(key, f"{gap.what}{_shown(value)} is not built in this version", gap.instead)


def _shown(value: object) -> str:
    return "" if is_block(value) or is_list(value) else f" ({show(value)})"


def _check_target(config: RunConfig) -> None:
    if isinstance(config.target, StoredTarget):
        _check_stored(config.target.run_path)


def _check_stored(run_path: str) -> None:
    way_out = (
        "write the sizes of the target and a pretrain: block to train it here, "
        "or a local path to a run directory with target.safetensors"
    )
    path = Path(run_path).expanduser()
    if not path.exists():
        if _ACCOUNT_BOUND.fullmatch(run_path):
            said = f"{show(run_path)} is bound to an account, and there is no such local path"
            raise refusal("target.run_path", said, way_out)
        raise refusal("target.run_path", f"there is no {show(run_path)}", way_out)
    if path.is_dir() and not (path / "target.safetensors").is_file():
        raise refusal("target.run_path", f"{show(run_path)} holds no target.safetensors", way_out)
    if path.is_file() and path.suffix != ".safetensors":
        raise refusal("target.run_path", f"{show(run_path)} is not a .safetensors file", way_out)


def _values_at(pattern: str, document: object) -> Iterator[tuple[str, object]]:
    """The values a dotted key with [] names, each with its full key."""
    name, _, rest = pattern.partition(".")
    is_each = name.endswith("[]")
    name = name.removesuffix("[]")
    if not is_block(document) or name not in document:
        return
    found = document[name]
    items = [(f"{name}[{i}]", item) for i, item in enumerate(found)] if is_each and is_list(found) else []
    for key, value in items if is_each else [(name, found)]:
        if rest:
            yield from ((f"{key}.{inner}", last) for inner, last in _values_at(rest, value))
        else:
            yield key, value
