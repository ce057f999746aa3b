"""The limit of file descriptors of this process, and how they are shared out.

The soft limit is raised to the hard one, and children get the limit that this process was started with, as with
kuma-dp: Go's runtime does so (Go 1.19, os.Open; 1.21, syscall.forkExec).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

# For Envoy, CoreDNS, the control plane, files, and the clients of this host (`kumadp.host.net.client_slots`).
RESERVE = 256
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors that mean that the host or this process lacks a resource for now, and that a retry may work."""
_DEEPEST = 20
_GONE = frozenset({errno.ENOENT, errno.ESRCH})

_initial: int | None = None


def raise_limit() -> None:
    """Raise the soft limit of this process to its hard limit."""
    global _initial
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _initial is None:
        _initial = soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def child_descriptor_limit() -> int | None:
    """Return the soft limit for a child, or None if it has that limit already."""
    return _initial


def restore_limit() -> None:
    """Restore the limit that this process was started with, for the program that replaces it by execve(2)."""
    if _initial is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_initial, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def limit() -> int:
    """Return the number of descriptors that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def share(most: int, part: int = 6) -> int:
    """Return ``most``, but at most one ``part``-th (a sixth) of the limit without `RESERVE`."""
    bound = limit()
    if bound < 0:
        return most
    return min(most, max(8, max(bound - RESERVE, bound // 2) // part))


def headroom() -> dict[str, int]:
    """Return the ``used`` descriptors and their ``limit``; if none is left to count them with, all are used."""
    bound = limit()
    try:
        # Without the descriptor that reads the folder.
        return {"used": len(os.listdir("/proc/self/fd")) - 1, "limit": bound}  # noqa: PTH208 - a list of names, fast
    except OSError as error:
        return {"used": bound if error.errno in EXHAUSTED else 0, "limit": bound}


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is a lack of descriptors or memory in this process.

    Such an error says nothing about the other side.
    """
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            break
        if isinstance(cause, OSError) and cause.errno in EXHAUSTED - {errno.EAGAIN}:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_gone(error: OSError) -> bool:
    """Return whether an error means that a process or a file does not exist."""
    return error.errno in _GONE
