"""Core dumps of this process: none, as it holds the keys of the mesh. Its children may have what it was given.

PR_SET_DUMPABLE (prctl(2)) would take /proc/self from us too.
"""

from __future__ import annotations

import contextlib
import resource

_given: int | None = None


def disable_core_dumps() -> None:
    """From now on this process leaves no core dump."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if _given is None:
        _given = soft
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def child_core_limit() -> int | None:
    """The soft limit (bytes, -1: none) for a child's core dumps; None where it has it already."""
    return _given


def restore_core_limit() -> None:
    """What this process was given counts again; for the program that takes its place, and finds it."""
    if _given is not None:
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (_given, resource.getrlimit(resource.RLIMIT_CORE)[1]))
