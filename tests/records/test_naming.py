"""Names of metrics are the same in every sink, and the page says them."""

import math
import re
from pathlib import Path

import pytest

from vpd.records.naming import PREFIXES, name_in_sinks, named_scalars

PAGE = Path(__file__).parents[2] / "docs" / "records.md"


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [
        ("train", "loss/total", "train/loss/total"),
        ("train", "grad_norm/ci_fn", "train/grad_norm/ci_fn"),
        ("train", "lr/components", "train/lr/components"),
        ("eval", "loss/PGDReconLoss_3x0.1", "eval/loss/PGDReconLoss_3x0.1"),
        ("eval", "IdentityCIError/linear1@0.2", "eval/IdentityCIError/linear1_0.2"),
        ("eval", "CI_L0/h.0.mlp.c_fc", "eval/CI_L0/h.0.mlp.c_fc"),
        ("eval", "CI_L0/my group (é)", "eval/CI_L0/my_group____"),
        ("figure", "uv_plot", "figures/uv_plot"),
    ],
)
def test_names(kind: str, key: str, name: str) -> None:
    assert name_in_sinks(kind, key) == name


def test_what_is_not_finite_is_left_out() -> None:
    assert named_scalars("train", {"a": 1.0, "b": math.nan, "c": math.inf, "d": 2}) == {"train/a": 1.0, "train/d": 2.0}


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `(train|eval|figure)` \| .* \| `([a-z]+/)<", PAGE.read_text(), re.M)
    assert dict(rows) == PREFIXES
