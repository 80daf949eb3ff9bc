"""What differs in meaning between two configurations, and whether it changes the trajectory of training."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpd.config.metrics import AnyMetric
from vpd.config.pretraining import PretrainingConfig
from vpd.config.run import RunConfig
from vpd.config.sites import match_sites
from vpd.config.sources import RepeatedScope, Scope, resolved_scope
from vpd.config.values import is_block, is_list

AnyConfig = RunConfig | PretrainingConfig

# Reporting, saving and placement: they change nothing but rounding.
_NOT_THE_TRAJECTORY = (
    "schema_version",
    "run_name",
    "run_id",
    "out_dir",
    "cadence",
    "eval",
    "samples",
    "logging",
    "wandb",
    "runtime.device",
    "runtime.dp",
    "runtime.mesh",
    "runtime.placement",
    "runtime.remat",
    "runtime.remat_recon_forwards",
    "runtime.reuse_prefix",
    "runtime.steps_per_dispatch",
    "runtime.compilation_cache_dir",
)


# What a run begins with, or is made of: no later step can take another value of these.
_FIXED = (
    "target",
    "resume_provenance",
    "pd.decomposition_targets",
    "pd.identity_decomposition_targets",
    "pd.tied_weights",
    "pd.initialization",
    "pd.ci_config",
    "pd.components_optimizer.type",
    "pd.ci_fn_optimizer.type",
    "pd.faithfulness_warmup_steps",
    "pd.faithfulness_warmup_lr",
    "pd.faithfulness_warmup_weight_decay",
)


@dataclass(frozen=True)
class Changes:
    """Dotted keys whose meaning differs.

    Attributes:
        trajectory: those that change what training computes.
        other: those about reporting, saving and placement.
    """

    trajectory: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def fixed(self) -> tuple[str, ...]:
        """Those that a run which has begun can't change."""
        return tuple(key for key in self.trajectory if _is_within(key, _FIXED))


def changed_fields(a: AnyConfig, b: AnyConfig) -> Changes:
    """The dotted keys in which two configurations of one kind mean something different."""
    keys = list(dict.fromkeys(_differences(_meaning(a), _meaning(b), "")))
    other = tuple(key for key in keys if _is_aside(key))
    return Changes(tuple(key for key in keys if not _is_aside(key)), other)


def values_of(config: AnyConfig, keys: Sequence[str]) -> dict[str, object]:
    """``{dotted key: value}`` as :func:`changed_fields` compares them; null where a key is not there."""
    return {key: _value_at(_meaning(config), re.findall(r"[^.\[\]]+", key)) for key in keys}


def _value_at(document: object, names: Sequence[str]) -> object:
    for name in names:
        if is_block(document):
            document = document.get(name)
        elif is_list(document) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


def _is_aside(key: str) -> bool:
    return _is_within(key, _NOT_THE_TRAJECTORY)


def _is_within(key: str, blocks: Sequence[str]) -> bool:
    return any(key == block or key.startswith((f"{block}.", f"{block}[")) for block in blocks)


def _meaning(config: AnyConfig) -> dict[str, object]:
    """The dump with older names, implied ties and globs replaced by what they mean."""
    document = config.model_dump(mode="json")
    if isinstance(config, PretrainingConfig):
        return document
    pd: dict[str, object] = document["pd"]
    pd["tied_weights"] = [list(pair) for pair in config.tied_pairs]
    if config.site_names is not None:
        pd["decomposition_targets"] = match_sites(config.pd.decomposition_targets, config.site_names)
    pd["loss_metrics"] = [_term_meaning(term, config.has_sequence) for term in config.pd.loss_metrics]
    if config.eval is not None:
        document["eval"]["metrics"] = [_term_meaning(term, config.has_sequence) for term in config.eval.metrics]
    return document


def _term_meaning(term: AnyMetric, has_sequence: bool) -> dict[str, object]:
    document = term.model_dump(mode="json")
    for key in ("scope", "mask_scope"):
        scope: object = getattr(term, key, None)
        if isinstance(scope, Scope | RepeatedScope | str):
            document[key] = list(resolved_scope(scope, has_sequence))
    return document


def _differences(a: object, b: object, key: str) -> Iterator[str]:
    if is_block(a) and is_block(b) and key != "pd.decomposition_targets":
        if a.get("type") != b.get("type") and key.endswith("]"):
            yield key
            return
        for name in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif is_list(a) and is_list(b) and len(a) == len(b) and any(is_block(item) for item in a):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{key}[{i}]")
    elif a != b:
        yield key
