"""``vpd`` that kills its process: ``python killed_attribution.py AT ARGUMENT...``, at the ATth save; 0 goes to the end.

The sums are saved after every program.
"""

import os
import signal
import sys
from itertools import count

from vpd import cli
from vpd.analysis import parts

if __name__ == "__main__":
    at, sys.argv[1:] = int(sys.argv[1]), sys.argv[2:]
    parts.SAVE_SECONDS, parts.SAVE_SHARE = -1.0, 1e9
    saved, calls = parts.Parts.drop_before, count(1)

    def drop_before(self, shard, done):
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        saved(self, shard, done)

    parts.Parts.drop_before = drop_before
    cli.main()
