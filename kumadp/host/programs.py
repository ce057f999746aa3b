"""Programs that the user names in settings."""

from __future__ import annotations

import os
from pathlib import Path


def why_not_runnable(program: str) -> str:
    """Return why a program that ``shutil.which`` does not find cannot be run, with its path or name."""
    if os.sep not in program:
        return f"{program} is not on PATH"
    path = Path(program)
    if path.is_dir():
        return f"{program} is a directory"
    return f"{program} {'cannot be executed' if path.exists() else 'is not there'}"
