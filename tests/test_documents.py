"""README and docs are true: the example runs, the reference is the models', names import, links lead somewhere."""

import re
import shutil
from pathlib import Path

import pytest

import vpd
from vpd.config import config_reference, read_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code.group(1), "README.md", "exec"), names)
    assert names["run"].status == "finished" and names["run"].step == 2000
    assert names["ci"]["linear1"].shape == (5, 20)
    assert names["only_important"].shape == names["everything"].shape == (5, 5)
    assert set(names["alive"]) == {"linear1", "linear2"}
    assert (tmp_path / "runs" / "readme" / "report.html").exists()


def test_every_public_name_imports() -> None:
    for name in vpd.__all__:
        assert getattr(vpd, name) is not None


def test_config_reference_is_current() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_reference(), (
        "remake it: vpd config reference > docs/config.md"
    )


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(path: Path) -> None:
    assert not read_file(path).notices


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert link.startswith("https://arxiv.org/") or (page.parent / link).exists(), f"{page.name}: {link}"
