"""Runs made to fail on purpose: each diagnosis names its failure, a healthy run gets none."""

import json
from pathlib import Path

import pytest
from failing_runs import FAILING, HEALTHY
from tiny_run import Document, Vpd

from vpd.config.document import write_document


def diagnoses_of(content: Document, tmp_path: Path, vpd: Vpd) -> tuple[list[str], str]:
    """Names of what `vpd evaluate` and the report find of a run, and what training said at its end."""
    file = tmp_path / "run.yaml"
    file.write_text(write_document(content))
    trained = vpd("train", file, "--out-dir", tmp_path / "runs", "--run-id", "run", "--quiet")
    assert trained.code == 0, trained.err
    run = tmp_path / "runs" / "run"
    found = json.loads(vpd("evaluate", run, "--json").out)["diagnoses"]
    page = (run / "report.html").read_text()
    for one in found:
        assert one["sentence"] and one["evidence"] and one["knob"]
        assert f"<h3>{one['name'].capitalize()}</h3>" in page
    return [one["name"] for one in found], trained.out


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILING)
def test_a_failure_is_named(failure: str, tmp_path: Path, vpd: Vpd) -> None:
    names, said = diagnoses_of(FAILING[failure], tmp_path, vpd)
    assert f"{failure}:" in said
    assert failure in names


@pytest.mark.slow
def test_a_healthy_run_gets_none(tmp_path: Path, vpd: Vpd) -> None:
    names, said = diagnoses_of(HEALTHY, tmp_path, vpd)
    assert names == [] and not any(f"{failure}:" in said for failure in FAILING)
    assert "solved" in said and "not solved" not in said
