"""Opens standard input, output and error if the parent process closed them.

A closed descriptor is reused for the first file or socket that is opened, and text for standard error, of ours or of a
child, then goes into that one.
"""

from __future__ import annotations

import os
import sys


def fill_standard_descriptors() -> None:
    """Open descriptors 0 to 2 on /dev/null if they are closed, and Python's streams. To be called first of all."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        if _is_closed(number):
            opened = _open_nothing(flags)
            # Lower ones are open by now: it is this number, unless another thread took it in between.
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            # Python opens files closed-on-exec: the program that replaces us by execve(2) needs it too.
            os.set_inheritable(number, True)
    # Python has None for those that were closed when it started.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _open_nothing(flags: int) -> int:
    try:
        return os.open(os.devnull, flags)
    except OSError:
        # A container without /dev.
        return os.memfd_create("null")
