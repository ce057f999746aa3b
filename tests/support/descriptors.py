"""Which descriptors this process has opened since."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_descriptors() -> frozenset[tuple[str, str]]:
    """Each open descriptor with what it refers to.

    A set, for a test's `after - previous`: what earlier tests left may be closed at any time in between, which a
    count would take for a descriptor of the test.
    """
    opened = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            opened.add((link.name, str(link.readlink())))
    return frozenset(opened)
