"""Our own memory cgroup, v1 or v2, as the kernel reports it. Reading it needs no disk."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")
# The counters of kills: cgroup v2 (memory.events) and v1 (memory.oom_control, Linux 4.13).
_V2, _V1 = "memory.events", "memory.oom_control"


def cgroups(proc: Path = PROC) -> list[tuple[str, str]]:
    """Return controllers (v2: none) and path of each cgroup that we are in (proc_pid_cgroup(5)); empty if unknown."""
    try:
        # Cgroup names may hold any bytes: a user whom a subtree is delegated to chooses them.
        lines = os.fsdecode(proc.read_bytes()).split("\n")
    except OSError:
        return []
    return [
        (controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1)
    ]


def oom_file(proc: Path = PROC, mounted: Path = MOUNTED) -> Path | None:
    """Return the file that counts the out-of-memory kills in our cgroup, or None."""
    for controllers, path in cgroups(proc):
        inside = PurePosixPath(path.lstrip("/"))
        # In a container without a cgroup namespace the path is the host's, and what is mounted is our own.
        if not controllers:
            candidates = [root / place / _V2 for root in (mounted, mounted / "unified") for place in (inside, ".")]
        elif "memory" in controllers.split(","):
            candidates = [mounted / "memory" / place / _V1 for place in (inside, ".")]
        else:
            continue
        for file in candidates:
            if file.is_file():
                return file
    return None


class OomKills:
    """Counts out-of-memory kills in our cgroup, which include those of children that stay in it."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._seen = self.count()

    def count(self) -> int | None:
        """Return the number of kills since the cgroup was created, or None if it cannot be read."""
        if self.file is None:
            return None
        try:
            lines = self.file.read_text(errors="replace").splitlines()
        except OSError:
            return None
        counters = dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)
        try:
            return int(counters["oom_kill"])
        except (KeyError, ValueError):
            return None

    def new_kills(self) -> tuple[int, int] | None:
        """Return the counts before and now if there were kills since the last call, or since this was created."""
        previous, now = self._seen, self.count()
        if now is not None:
            self._seen = now
        return (previous, now) if previous is not None and now is not None and now > previous else None
