"""Which metrics an evaluation takes, chosen by name from those of a run file and those that need no settings."""

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from vpd.config.block import plain
from vpd.config.checks import check_run
from vpd.config.losses import Loss, PersistentAdversary
from vpd.config.metrics import LOSS_TYPES, METRIC_TYPES, AnyMetric, EvalMetric
from vpd.config.run import Eval, RunConfig
from vpd.errors import ConfigError

_METRIC: TypeAdapter[AnyMetric] = TypeAdapter(EvalMetric)
_TYPES = sorted(METRIC_TYPES | LOSS_TYPES)


def with_metrics(config: RunConfig, block: Eval, names: Sequence[str]) -> tuple[RunConfig, frozenset[str]]:
    """A run file that evaluates what is named, and which of the losses trained on are.

    Args:
        config: of the run.
        block: its evaluation, or the one in place of none.
        names: keys of the run file's metrics or losses, or types that need no settings.

    Raises:
        ConfigError: a name that is none of these, or that this target or an evaluation can't have.
    """
    own = {metric.key: metric for metric in block.metrics}
    trained = {loss.key: loss for loss in config.pd.loss_metrics}
    chosen = dict.fromkeys(names)
    metrics = [own.get(name) or _without_settings(name, own, trained) for name in chosen if name not in trained]
    for name in chosen:
        if isinstance(trained.get(name), PersistentAdversary):
            raise ConfigError(
                f"--metrics {plain(name)}: its sources belong to the training state, which is not loaded; "
                "name a PGDReconLoss or a PGDReconProbe"
            )
    changed = config.model_copy(update={"eval": block.model_copy(update={"metrics": tuple(metrics)})})
    check_run(changed)
    return changed, frozenset(trained) & frozenset(chosen)


def _without_settings(name: str, own: dict[str, AnyMetric], trained: dict[str, Loss]) -> AnyMetric:
    if name not in _TYPES:
        known = ", ".join([*own, *(key for key in trained if key not in own)])
        raise ConfigError(
            f"--metrics {plain(name)}: there is no such metric; the run file has {known or 'none'}, and every type "
            f"that needs no settings can be named: {', '.join(filter(_needs_none, _TYPES))}"
        )
    try:
        return _METRIC.validate_python({"type": name})
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, found["loc"][1:])) or found["msg"] for found in error.errors()[:3])
        raise ConfigError(
            f"--metrics {plain(name)}: it needs settings ({missing}); write it under eval.metrics of the run file"
        ) from None


def _needs_none(name: str) -> bool:
    try:
        _METRIC.validate_python({"type": name})
    except ValidationError:
        return False
    return True


def is_of(metric: str, key: str) -> bool:
    """Whether a scalar is one that a metric of this key gives."""
    rest = metric.removeprefix("loss/").removeprefix(key)
    return rest != metric.removeprefix("loss/") and (
        not rest or rest[0] in "/@" or (rest[:1] == "_" and rest[1:2].isdigit())
    )
