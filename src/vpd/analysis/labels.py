"""Sentences that somebody has given subcomponents: ``labels/<name>/labels.json``, ``{"SITE:INDEX": "sentence"}``."""

import json
from pathlib import Path

from vpd.errors import RunError

FILE = "labels.json"


def read_labels(run: Path) -> dict[str, str]:
    """The labels of a run by name of the subcomponent, of several sets the last in order; empty where there are none.

    Args:
        run: the run directory.

    Raises:
        RunError: a file that is no object of sentences.
    """
    found: dict[str, str] = {}
    for path in sorted((run / "labels").glob(f"*/{FILE}")):
        try:
            labels = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} can't be read ({type(error).__name__}); mend it or move it away") from None
        if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
            raise RunError(f'{path} must be one JSON object {{"SITE:INDEX": "sentence"}}; mend it or move it away')
        found |= {str(name): text for name, text in labels.items()}
    return found
