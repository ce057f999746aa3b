"""Processes by their id."""

from __future__ import annotations

from pathlib import Path

from tests.support.poll import poll


def is_alive(pid: int) -> bool:
    """Whether a process runs: there is one, and it is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_in(file: Path) -> int:
    """The id that a script writes into this file; waits for it."""
    return int(poll(lambda: file.read_text().strip() if file.exists() else "", what="the process's id"))
