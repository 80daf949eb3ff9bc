"""Losses and metrics of older files, each as the row of today's grid that it is."""

from collections.abc import Callable, Mapping
from typing import get_args

from vpd.config.block import Block, nearest, show
from vpd.config.legacy.rules import Field, Rule, Table, cosmetic, native, walk
from vpd.config.losses import Loss
from vpd.config.metrics import OwnMetric
from vpd.config.values import is_block

LOSSES: Mapping[str, type[Block]] = {loss.__name__: loss for loss in get_args(Loss)}
METRICS: Mapping[str, type[Block]] = {metric.__name__: metric for metric in get_args(OwnMetric)} | LOSSES
Choose = Callable[[str, Mapping[str, object]], Table | None]

WITHOUT_COEFF: Table = {"coeff": cosmetic("a metric has no weight")}


def one_of(kind: str, key: str, known: Mapping[str, object], choose: Choose) -> Rule:
    """An entry of a list of losses or metrics.

    Args:
        kind: loss or metric, for sentences.
        key: the key that says which one it is.
        known: the names there are.
        choose: the table of a name and its entry; None where there is no such thing here.
    """

    def rule(field: Field) -> None:
        entry = field.value
        if not is_block(entry):
            field.refuse(f"expected a block of keys, got {show(entry)}", "")
            return
        name = entry.get(key)
        table = choose(name, entry) if isinstance(name, str) else None
        if table is not None:
            walk(field.draft, entry, field.old, field.beside, table)
            return
        close = nearest(name, known)
        refused = f"there is no {kind} {show(name)} here" + (f"; nearest known spelling: {close}" if close else "")
        for inner, value in entry.items():
            says = refused if inner == key else f"it belongs to {show(name)}, which is refused"
            field.draft.refuse((*field.old, inner), value, says, field.beside)
        if not entry:
            field.refuse(refused, "")

    return rule


def table_of(name: str, known: Mapping[str, type[Block]], special: Table) -> Table | None:
    """Today's keys of a loss or metric under their own names, and the older keys beside them."""
    if name not in known:
        return None
    plain = native(known[name])
    own = {key: rule for key, rule in special.items() if key in plain or key in ("classname", "source_shape", "coeff")}
    return {**plain, **own}
