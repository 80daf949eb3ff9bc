"""What counts as a change between two configurations, and which changes alter training."""

import pytest
from good_file import GOOD, Document, changed, edited

from vpd.config import changed_fields, read_run_file

_A = read_run_file(GOOD).config


def _changes(document: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    changes = changed_fields(_A, read_run_file(document).config)
    return changes.trajectory, changes.other


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pd.seed", 3),
        ("pd.loss_metrics.1.beta", 0.0),
        ("pd.tied_weights", [["linear1", "linear2"]]),
        ("pd.decomposition_targets", [{"module_pattern": "linear*", "C": 12}]),
        ("pd.loss_metrics.4.scope.type", "per_batch_per_position"),
        ("pd.loss_metrics.3.mask_scope", "single_source"),
        ("eval.metrics.4.coeff", 3),
    ],
)
def test_another_spelling_is_no_change(path: str, value: object) -> None:
    assert _changes(changed(path, value)) == ((), ())


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("pd.seed", 4, "pd.seed"),
        ("pd.tied_weights", [], "pd.tied_weights"),
        ("pd.loss_metrics.1.coeff", 0.1, "pd.loss_metrics[1].coeff"),
        ("pd.loss_metrics.4.scope.type", "c", "pd.loss_metrics[4].scope"),
        ("pd.components_optimizer.lr_schedule.start_val", 1, "pd.components_optimizer.lr_schedule.start_val"),
        ("target.pretrain.seed", 1, "target.pretrain.seed"),
        ("runtime", {"autocast_bf16": True}, "runtime.autocast_bf16"),
    ],
)
def test_what_changes_the_trajectory(path: str, value: object, key: str) -> None:
    assert _changes(changed(path, value)) == ((key,), ())


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("run_name", "x", "run_name"),
        ("out_dir", "/tmp/x", "out_dir"),
        ("cadence.train_log_every", 7, "cadence.train_log_every"),
        ("eval.n_steps", 7, "eval.n_steps"),
        ("eval", None, "eval"),
        ("runtime", {"compilation_cache_dir": "x"}, "runtime.compilation_cache_dir"),
        ("runtime", {"device": "cuda"}, "runtime.device"),
    ],
)
def test_what_does_not(path: str, value: object, key: str) -> None:
    assert _changes(changed(path, value)) == ((), (key,))


def test_a_term_more_and_another_type() -> None:
    more = edited(lambda d: d["pd"]["loss_metrics"].append({"type": "UnmaskedReconLoss", "coeff": 1}))
    assert _changes(more) == (("pd.loss_metrics",), ())
    other = changed("pd.loss_metrics.0", {"type": "UnmaskedReconLoss", "coeff": 1})
    assert _changes(other) == (("pd.loss_metrics[0]",), ())
