"""Gives memory that is free within this process back to the kernel.

glibc keeps freed blocks below its threshold for mapped ones (up to 32 MiB, mallopt(3)) for later use: after one large
message a process that needs 50 MB stays at hundreds.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    # Most runs never have a large message.
    import ctypes

    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        # musl has none, and keeps nothing of this size.
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(found(pad))


def trim_memory() -> None:
    """Return free memory to the kernel (malloc_trim(3)); 1 to 20 ms without Python's lock, best in a thread."""
    if (trim := _trim()) is not None:
        trim(0)
