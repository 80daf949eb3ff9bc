"""Figures drawn in a process of their own: whole or not at all, and what fails is one sentence."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vpd.evaluation import drawer as drawers
from vpd.evaluation.drawer import Drawer
from vpd.evaluation.plates import Plate, leave_plates, waiting_steps

SPECTRUM = Plate("ci_mean_spectrum", "language_figures.ci_mean_spectrum", ({"a": np.linspace(1, 0, 9)}, 1e-6))
BROKEN = Plate("ci_mean_spectrum", "figures.ci_mean_spectrum", ({},))  # a figure needs a site


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    return tmp_path / "figures"


def _drawer(figures: Path) -> tuple[Drawer, list[str], list[tuple[int, Path]]]:
    said: list[str] = []
    drawn: list[tuple[int, Path]] = []
    return Drawer(figures, said.append, lambda *found: drawn.append(found)), said, drawn


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_fails_costs_one_sentence_and_the_others_are_drawn(figures: Path) -> None:
    figures.mkdir()
    leave_plates(figures, 1, [SPECTRUM], {})  # as a killed run does
    drawer, said, drawn = _drawer(figures)
    drawer.go_on()
    drawer.draw(2, [BROKEN], {})
    drawer.draw(3, [SPECTRUM], {"samples.json": {"prompts": []}})
    drawer.settle(60.0)
    drawer.close()
    assert drawn == [(1, figures / "1"), (3, figures / "3")]
    assert sorted(p.name for p in figures.iterdir()) == ["1", "3"] and waiting_steps(figures) == []
    assert {p.name for p in (figures / "3").iterdir()} == {"captions.json", "ci_mean_spectrum.png", "samples.json"}
    assert said == [
        "figures of step 2 are not drawn (ValueError: a figure needs at least one site, and got none); the run goes on"
    ]


def test_a_slow_process_is_not_waited_for_and_the_oldest_give_way(
    figures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawers, "COMMAND", ("-c", "import time; time.sleep(60)"))
    drawer, said, drawn = _drawer(figures)
    began = time.monotonic()
    for step in range(8):
        drawer.draw(step, [SPECTRUM], {})
    assert time.monotonic() - began < 2
    assert waiting_steps(figures) == [0, 5, 6, 7]
    drawer.settle(0.1)
    drawer.close()
    assert not drawn and [s.split(",")[0] for s in said] == [
        "figures come faster than they are drawn",
        "figures were not drawn within 0.1 s; the figures of step 7 wait; the run goes on",
    ]


def test_a_process_that_dies_or_does_not_start(figures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawers, "COMMAND", ("-c", "import os; os.kill(os.getpid(), 9)"))
    drawer, said, _ = _drawer(figures)
    drawer.draw(1, [SPECTRUM], {})
    drawer.settle(20.0)
    _until(lambda: bool(said))
    monkeypatch.setattr(drawers.sys, "executable", str(figures / "nothing"))
    drawer.draw(2, [SPECTRUM], {})
    drawer.close()
    assert said[0] == "figures of step 1 are not drawn (their process died of SIGKILL); the run goes on"
    assert said[1].startswith("figures can't be drawn (No such file") and len(said) == 2


def test_a_disk_that_refuses(figures: Path) -> None:
    figures.write_text("not a folder")
    drawer, said, _ = _drawer(figures)
    drawer.draw(1, [SPECTRUM], {})
    drawer.settle(0.0)
    drawer.close()
    assert said == ["figures can't be put down (File exists); the run goes on"]


def test_what_draws_imports_no_jax() -> None:
    code = (
        "import sys, vpd.evaluation.drawer_process, vpd.evaluation.language_figures, vpd.evaluation.induction_figures;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
