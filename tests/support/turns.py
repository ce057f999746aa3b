"""Tests that want the same well-known ports take turns, in whatever process they run."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Hold the turn called ``name``; the kernel gives it back whatever the holder dies of (flock(2))."""
    with (Path(tempfile.gettempdir()) / f"kumadp-tests-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
