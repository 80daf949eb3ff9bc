"""A harvest that kills its process: ``python killed_harvest.py RUN SETTINGS NAME AT NTH``; nothing AT goes to the end.

``add``: after the NTH batch that this process has added; ``draft``: while its totals are saved; ``drop``: once they are
saved and before what was saved earlier is removed. Every batch is saved.
"""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import numpy as np

from vpd import open_run
from vpd.analysis import parts
from vpd.analysis.harvest import harvest as harvesting
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.harvest.totals import Totals
from vpd.analysis.parts import Parts


def kill_at(owner: object, name: str, nth: int) -> None:
    """Before the nth call."""
    real, calls = getattr(owner, name), count(1)

    def call(*given, **named):
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(owner, name, call)


if __name__ == "__main__":
    path, settings, name, at, nth = sys.argv[1:]
    parts.SAVE_SECONDS, parts.SAVE_SHARE = -1.0, 1e9
    if at:
        place = {"add": (Totals, "add"), "draft": (np, "savez"), "drop": (Parts, "drop_before")}[at]
        kill_at(*place, int(nth))
    harvesting.harvest(open_run(Path(path)), Settings(**json.loads(settings)), name, quiet=True)
