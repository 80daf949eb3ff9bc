"""The process that draws a run's figures: told steps on standard input, it says each that it has drawn."""

import os
import queue
import sys
import threading
from pathlib import Path

from vpd.evaluation.plates import draw_plates

NICENESS = 5  # training comes first


def main(figures: Path) -> None:
    """Draw until the run closes standard input, or is gone: what it leaves undrawn waits for the run to go on."""
    os.nice(NICENESS)
    steps: queue.Queue[int] = queue.Queue()
    threading.Thread(target=_listen, args=(steps,), daemon=True).start()
    while True:
        step = steps.get()
        try:
            draw_plates(figures, step)
        except FileNotFoundError:
            if (figures / f"waiting-{step}.npz").exists():
                raise
            continue  # it was given up, for newer ones
        print(step, flush=True)


def _listen(steps: "queue.Queue[int]") -> None:
    for line in sys.stdin:
        steps.put(int(line))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
