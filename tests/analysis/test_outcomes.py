"""Short labels, last outcomes and what the front is drawn over."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_run import tiny

from vpd import read_run_file
from vpd.analysis.outcomes import Outcome, TradeOff, last_outcome, trade_off
from vpd.analysis.run_labels import short_labels

PROBE, PERSISTENT, STOCHASTIC = (
    "loss/PGDReconLoss_3x0.1",
    "loss/PersistentPGDReconLoss",
    "loss/StochasticReconLoss",
)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (("runs/tms-seed-0", "runs/tms-seed-1"), ("0", "1")),
        (("runs/tms_a=1_b=2", "runs/tms_a=10_b=2"), ("a=1_b=2", "a=10_b=2")),
        (("x/seed-0", "y/seed-0"), ("x/seed-0", "y/seed-0")),
        (("runs/a", "runs/b-long"), ("a", "b-long")),
        (("runs/tms", "runs/tms-2"), ("tms", "tms-2")),
    ],
)
def test_labels_are_short_and_distinct(paths: tuple[str, ...], labels: tuple[str, ...]) -> None:
    assert short_labels([Path(path) for path in paths]) == labels


SITES = ("linear1", "linear2")


def front_of(outcomes: Sequence[Outcome], **changes: object) -> TradeOff | None:
    """The front over tiny runs with these outcomes."""
    config = read_run_file(tiny(**changes)).config
    return trade_off([config] * len(outcomes), [SITES] * len(outcomes), outcomes)


def outcome(l0: float | None, **losses: float) -> Outcome:
    sites = {} if l0 is None else {"CI_L0/linear1": l0, "CI_L0/linear2": 1.0}
    return Outcome(60, sites | {key.replace("__", "/"): value for key, value in losses.items()}, None)


def test_a_probe_comes_before_the_persistent_term_before_random_masks() -> None:
    every = [outcome(x, **{PROBE: x, PERSISTENT: 2 * x, STOCHASTIC: 3 * x}) for x in (1.0, 2.0)]
    for dropped, kind, key in (
        ((), "adversarial probe", PROBE),
        ((PROBE,), "persistent adversary", PERSISTENT),
        ((PROBE, PERSISTENT), "stochastic masks", STOCHASTIC),
    ):
        kept = [Outcome(60, {k: v for k, v in o.metrics.items() if k not in dropped}, None) for o in every]
        found = front_of(kept)
        assert found is not None and (found.kind, found.recon) == (kind, key)
        assert found.points[:, 0].tolist() == [2.0, 3.0]
        assert found.front.tolist() == [True, False]


def test_runs_without_the_figures_are_left_out() -> None:
    given = [outcome(1.0, **{PROBE: 1.0}), outcome(None, **{PROBE: 0.1}), outcome(2.0), outcome(3.0, **{PROBE: 0.5})]
    found = front_of(given)
    assert found is not None and found.runs == (0, 3) and found.front.all()
    assert front_of(given[:2]) is None
    assert front_of([given[0]] * 2, eval=None) is None


def test_the_last_value_of_every_metric_counts(tmp_path: Path) -> None:
    assert last_outcome(tmp_path) == Outcome(None, {}, None)
    lines = [
        {"kind": "train", "step": 5},
        {"kind": "eval", "step": 10, "metrics": {"slow": 1.0, "fast": 1.0}, "verdict": [{"ok": False}]},
        {"kind": "eval", "step": 20, "metrics": {"fast": 2.0, "bad": None}, "verdict": [{"ok": True}, {"ok": None}]},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_outcome(tmp_path) == Outcome(20, {"slow": 1.0, "fast": 2.0}, True)
