"""Core dumps of this process: none, since it holds keys of the mesh. Its children get the limit it was started with.

PR_SET_DUMPABLE (prctl(2)) would take /proc/self from us too.
"""

from __future__ import annotations

import contextlib
import resource

_initial: int | None = None


def disable_core_dumps() -> None:
    """Set the limit for core dumps of this process to 0."""
    global _initial
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if _initial is None:
        _initial = soft
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def child_core_limit() -> int | None:
    """Return the soft limit for a child's core dumps (bytes, -1: unlimited), or None if it has that limit already."""
    return _initial


def restore_core_limit() -> None:
    """Restore the limit that this process was started with, for the program that replaces it by execve(2)."""
    if _initial is not None:
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (_initial, resource.getrlimit(resource.RLIMIT_CORE)[1]))
