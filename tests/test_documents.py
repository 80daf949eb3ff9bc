"""README and docs are true: the example runs, the reference is the models', names import, links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vpd
from vpd.config import config_reference, read_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


CHECKS = """
assert run.status == "finished" and run.step == 2000
assert ci["linear1"].shape == (5, 20)
assert only_important.shape == everything.shape == (5, 5)
assert set(alive) == {"linear1", "linear2"}
"""


def test_readme_example_runs(tmp_path: Path) -> None:
    """In a process that optimises what it compiles, since it takes as many steps as the reader's."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = os.environ | {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code.group(1) + CHECKS], cwd=tmp_path, env=environment, check=True)
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
