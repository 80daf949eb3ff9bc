"""Dotted places: entries by name, type, pattern or index; what is not there is refused with the nearest."""

from typing import Any

import pytest

from vpd import ConfigError
from vpd.config.places import find_place, path_text, replaced

DOCUMENT: dict[str, Any] = {
    "pd": {
        "seed": 0,
        "decomposition_targets": [{"module_pattern": "h.1", "C": 1}, {"module_pattern": "h.1.mlp.*", "C": 2}],
        "loss_metrics": [
            {"type": "FaithfulnessLoss", "name": None, "coeff": 1.0},
            {"type": "PGDReconLoss", "name": "weak", "coeff": 2.0},
            {"type": "PGDReconLoss", "name": "strong", "coeff": 3.0},
            {"type": "UnmaskedReconLoss", "name": "FaithfulnessLoss2", "coeff": 4.0},
        ],
        "ci_config": {"hidden_dims": [8, 9]},
        "tied_weights": None,
    },
    "eval": {"metrics": [{"type": "IdentityCIError", "identity_ci": [{"layer_pattern": "linear*", "n_features": 5}]}]},
}


def value_at(path: str) -> object:
    value: Any = DOCUMENT
    for step in find_place(DOCUMENT, path):
        value = value[step]
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pd.seed", 0),
        ("pd.loss_metrics.FaithfulnessLoss.coeff", 1.0),
        ("pd.loss_metrics.weak.coeff", 2.0),
        ("pd.loss_metrics.strong.coeff", 3.0),
        ("pd.loss_metrics.1.coeff", 2.0),
        ("pd.loss_metrics[2].coeff", 3.0),
        ("pd.loss_metrics.UnmaskedReconLoss.coeff", 4.0),
        ("pd.loss_metrics.FaithfulnessLoss2.coeff", 4.0),
        ("pd.decomposition_targets.h.1.C", 1),
        ("pd.decomposition_targets.h.1.mlp.*.C", 2),
        ("pd.decomposition_targets[1].C", 2),
        ("pd.ci_config.hidden_dims[1]", 9),
        ("pd.ci_config.hidden_dims", [8, 9]),
        ("pd.tied_weights", None),
        ("eval.metrics.IdentityCIError.identity_ci.linear*.n_features", 5),
    ],
)
def test_places(path: str, value: object) -> None:
    assert value_at(path) == value
    place = find_place(DOCUMENT, path)
    assert find_place(DOCUMENT, path_text(DOCUMENT, place)) == place


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pd.sed", ("pd.sed", "nearest valid spelling: seed")),
        ("pdd.seed", ("pdd", "nearest valid spelling: pd")),
        ("pd.loss_metrics.FaithfulnesLoss.coeff", ("no such entry", "FaithfulnessLoss")),
        ("pd.loss_metrics.PGDReconLoss.coeff", ("2 entries", "pd.loss_metrics.1")),
        ("pd.loss_metrics.7.coeff", ("no such entry", "weak")),
        ("pd.loss_metrics.weak.coef", ("pd.loss_metrics.weak.coef", "nearest valid spelling: coeff")),
        ("pd.tied_weights.0", ("null in this file",)),
        ("pd.seed.x", ("has no keys",)),
        ("pd.ci_config.hidden_dims.4", ("no such entry", "0, 1")),
        ("pd..seed", ("unknown key",)),
        ("pd.loss_metrics[0", ("unknown key",)),
        ("", ("needs a key",)),
    ],
)
def test_what_is_not_there(path: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_place(DOCUMENT, path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_replaced_leaves_the_original_alone() -> None:
    places = [find_place(DOCUMENT, path) for path in ("pd.loss_metrics.weak.coeff", "pd.ci_config.hidden_dims[0]")]
    changed: Any = replaced(DOCUMENT, dict(zip(places, (7.0, 3), strict=True)))
    assert changed["pd"]["loss_metrics"][1]["coeff"] == 7.0 and changed["pd"]["ci_config"]["hidden_dims"] == [3, 9]
    assert DOCUMENT["pd"]["loss_metrics"][1]["coeff"] == 2.0 and DOCUMENT["pd"]["ci_config"]["hidden_dims"] == [8, 9]
