"""Conformance: every recorded case against what the project computes, one check per kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from case import Case, load, paths
from kinds import (
    adam_sources,
    ci_fn,
    ci_l0,
    coactivation_merge,
    faithfulness,
    harvest_stats,
    identity_ci_error,
    importance_minimality,
    pgd,
    schedule,
    sigmoid,
    site_forward,
)
from language import ce_kl_eval, lm_forward, lm_trajectory
from trajectory import tms_trajectory

KINDS: dict[str, Callable[[Case], dict]] = {
    "adam_sources": adam_sources,
    "ci_fn": ci_fn,
    "ci_l0": ci_l0,
    "ce_kl_eval": ce_kl_eval,
    "coactivation_merge": coactivation_merge,
    "faithfulness": faithfulness,
    "harvest_stats": harvest_stats,
    "identity_ci_error": identity_ci_error,
    "importance_minimality": importance_minimality,
    "lm_forward": lm_forward,
    "lm_trajectory": lm_trajectory,
    "pgd": pgd,
    "schedule": schedule,
    "sigmoid": sigmoid,
    "site_forward": site_forward,
    "tms_trajectory": tms_trajectory,
}


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = load(path)
    if case.kind not in KINDS:
        pytest.skip(f"kind {case.kind} is not built yet: {case.name}")
    case.check(KINDS[case.kind](case))
