"""``vpd`` that kills its process: ``python killed_attribution.py AT ARGUMENT...``, at the ATth save; 0 goes to the end.

The sums are saved after every program.
"""

import sys

from killed_harvest import kill_at

from vpd import cli
from vpd.analysis import parts

if __name__ == "__main__":
    at, sys.argv[1:] = int(sys.argv[1]), sys.argv[2:]
    parts.SAVE_SECONDS, parts.SAVE_SHARE = -1.0, 1e9
    kill_at(parts.Parts, "drop_before", at)
    cli.main()
