"""What standard output is."""

from __future__ import annotations

import os
import sys


def has_colors() -> bool:
    """Return whether to print colours: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
