"""A lock between test processes, for tests that need the same well-known ports."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def file_lock(name: str) -> Iterator[None]:
    """Hold the lock called ``name``; the kernel releases it however the holder ends (flock(2))."""
    with (Path(tempfile.gettempdir()) / f"kumadp-tests-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
