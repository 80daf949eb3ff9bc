"""Where the user's machine keeps what can be computed again."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The user's folder for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpd"
