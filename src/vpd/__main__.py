"""``python -m vpd`` is ``vpd``."""

from vpd.cli import entry

entry()
