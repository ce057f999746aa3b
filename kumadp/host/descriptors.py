"""How many descriptors this process may have, and what of them is for whom.

The soft limit is raised to the hard one, and children get what this process was given, as with kuma-dp: Go's runtime
does so (Go 1.19, os.Open; 1.21, syscall.forkExec).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

# For Envoy, CoreDNS, the control plane, files, and the clients of this host (`kumadp.host.net.client_slots`).
RESERVE = 256
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors that say that the host or this process lacks something now: nothing is absent, and it may work later."""
_DEEPEST = 20
_GONE = frozenset({errno.ENOENT, errno.ESRCH})

_given: int | None = None


def raise_limit() -> None:
    """From now on this process may open as many as its hard limit says."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _given is None:
        _given = soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def child_descriptor_limit() -> int | None:
    """The soft limit for a child; None where it has it already."""
    return _given


def restore_limit() -> None:
    """What this process was given counts again; for the program that takes its place, and raises it again."""
    if _given is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_given, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def limit() -> int:
    """How many this process may have open now."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def share(most: int, part: int = 6) -> int:
    """``most``, or less: the given ``part`` (a sixth) of what is left when `RESERVE` is taken off the limit."""
    bound = limit()
    if bound < 0:
        return most
    return min(most, max(8, max(bound - RESERVE, bound // 2) // part))


def headroom() -> dict[str, int]:
    """``used`` descriptors and their ``limit``; where none is left to count them, all are used."""
    bound = limit()
    try:
        # The one that reads the folder is not ours for long.
        return {"used": len(os.listdir("/proc/self/fd")) - 1, "limit": bound}  # noqa: PTH208 - a list of names, fast
    except OSError as error:
        return {"used": bound if error.errno in EXHAUSTED else 0, "limit": bound}


def is_exhausted(error: BaseException) -> bool:
    """Whether an error, or one that it came from, only says that descriptors or memory are out in this process.

    Then nothing is known of the other side.
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
    """Whether a process or a file is not there; any other error says nothing of it."""
    return error.errno in _GONE
