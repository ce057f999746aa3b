"""Standard input, output and error exist: whoever started us may have closed them.

A descriptor that is closed is given to the first file or socket that is opened, and what is written to standard error,
by us or by a child, then goes into that one.
"""

from __future__ import annotations

import os
import sys


def fill_standard_descriptors() -> None:
    """Open descriptors 0 to 2 that are closed on /dev/null, and Python's streams on them. To be called first of all."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        if _is_closed(number):
            opened = _open_nothing(flags)
            # Those below are open by now: it is this number, unless somebody else took it in between.
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            # open(2) is made closed-on-exec by Python: the program that takes our place needs it too.
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
