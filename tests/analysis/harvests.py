"""Small harvests of tiny runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpd import open_run
from vpd.analysis.harvest.feed import feed, settings_for
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.run import Run

ROWS, BATCHES = 5, 6


def copied(run: Run, folder: Path) -> Run:
    """The same run where a test may write."""
    shutil.copytree(run.path, folder / run.path.name)
    return open_run(folder / run.path.name)


def settings_of(run: Run, **changes: object) -> Settings:
    """Thirty rows in six batches; a threshold that about half of the importances exceed."""
    found = settings_for(run, 1, "train", n_random=4, n_top=2, context=2)
    ci = run.axis.joined({s: np.asarray(x) for s, x in run.causal_importances(feed(run, "train", ROWS)(0)).items()})
    middle = float(np.median(ci[(ci > 0) & (ci < 1)]))
    return replace(found, rows=ROWS, batches=BATCHES, **{"threshold": middle} | changes)  # type: ignore[arg-type]
