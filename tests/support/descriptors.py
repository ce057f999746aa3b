"""Which descriptors a process has opened since."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_descriptors(pid: int | None = None) -> frozenset[tuple[str, str]]:
    """Each open descriptor of this process, or of another one, with what it refers to.

    A set, for a test's `after - previous`: what earlier tests left may be closed at any time in between, which a
    count would take for a descriptor of the test.
    """
    opened = set()
    for link in list(Path(f"/proc/{pid or 'self'}/fd").iterdir()):
        with suppress(FileNotFoundError):
            opened.add((link.name, str(link.readlink())))
    return frozenset(opened)
