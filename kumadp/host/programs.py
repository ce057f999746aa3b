"""Programs that the user names in settings."""

from __future__ import annotations

import os
from pathlib import Path


def find_program(word: str, path: str | None = None) -> str | None:
    """Return the program that a shell would run for this word; ``path`` None: that of the environment.

    As ``shutil.which``, whose module takes 2 ms and three libraries of compression at each start.
    """
    if os.sep in word:
        return word if _can_run(word) else None
    path = os.environ.get("PATH", os.defpath) if path is None else path
    # An empty folder is the working directory.
    places = (os.path.join(folder, word) for folder in path.split(os.pathsep))  # noqa: PTH118 - the user's text
    return next((place for place in places if _can_run(place)), None) if path else None


def _can_run(path: str) -> bool:
    try:
        return os.access(path, os.X_OK) and not os.path.isdir(path)  # noqa: PTH112 - the user's text
    except ValueError:
        # A NUL.
        return False


def why_not_runnable(program: str) -> str:
    """Return why a program that `find_program` does not find cannot be run, with its path or name."""
    if os.sep not in program:
        return f"{program} is not on PATH"
    path = Path(program)
    if path.is_dir():
        return f"{program} is a directory"
    return f"{program} {'cannot be executed' if path.exists() else 'is not there'}"
