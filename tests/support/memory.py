"""A memory cgroup of a test's own, v1 or v2, in which the kernel really kills."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.needs import missing
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")

# Takes more memory than there is, page by page, and waits to be killed.
HOG = """
import time
taken = []
while True:
    taken.append(bytearray(1 << 20))
    taken[-1][::4096] = b"x" * 256
"""


class MemoryCgroup:
    """Where it is; ``prefix`` before a command runs that in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = ("/bin/sh", "-c", f'echo $$ > {path}/cgroup.procs && exec "$@"', "sh")

    def limit(self, megabytes: int) -> None:
        name = "memory.limit_in_bytes" if (self.path / "memory.limit_in_bytes").exists() else "memory.max"
        (self.path / name).write_text(str(megabytes << 20))

    def pids(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def _empty(self) -> bool:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self.pids()


@contextlib.contextmanager
def memory_cgroup(megabytes: int) -> Iterator[MemoryCgroup]:
    """A new cgroup below the root with this limit; what is left in it is killed. Skips where none can be made."""
    parent = _V1 if _V1.is_dir() else _V2
    path = parent / f"kumadp-test-{os.getpid()}"
    if os.geteuid() != 0:
        missing("no memory cgroup here: needs root")
    try:
        path.mkdir()
    except OSError as error:
        missing(f"no memory cgroup here: {error.strerror}")
    cgroup = MemoryCgroup(path)
    try:
        try:
            cgroup.limit(megabytes)
        except OSError:
            missing("no memory cgroup here: the controller is not on")
        yield cgroup
    finally:
        poll(cgroup._empty, what="an empty cgroup")
        path.rmdir()
