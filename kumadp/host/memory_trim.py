"""Returns memory that is free within this process to the kernel.

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
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        # musl has none, and keeps no blocks of this size.
        return None
    malloc_trim.argtypes, malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(malloc_trim(pad))


def trim_memory() -> None:
    """Return free memory to the kernel (malloc_trim(3)); 1 to 20 ms without Python's lock, best in a thread."""
    if (trim := _trim()) is not None:
        trim(0)
