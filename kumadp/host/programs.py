"""Programs that the user names in settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Class, byte order and machine of an ELF header (elf(5)).
_HEADER_SIZE, _MACHINE = 20, slice(18, 20)


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


def is_foreign(program: Path) -> bool:
    """Return whether this is a program for another architecture than ours, by its ELF header. May block."""
    theirs, ours = _elf_header(program), _elf_header(Path(sys.executable))
    return theirs is not None and ours is not None and theirs != ours


def _elf_header(program: Path) -> tuple[bytes, bytes] | None:
    try:
        with program.open("rb") as file:
            head = file.read(_HEADER_SIZE)
    except OSError:
        return None
    return (head[4:6], head[_MACHINE]) if head.startswith(b"\x7fELF") and len(head) == _HEADER_SIZE else None
