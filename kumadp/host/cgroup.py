"""What the kernel says of our own memory cgroup, v1 or v2. Reading it costs no disk."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")
# The counters of kills: cgroup v2 (memory.events) and v1 (memory.oom_control, Linux 4.13).
_V2, _V1 = "memory.events", "memory.oom_control"


def cgroups(proc: Path = PROC) -> list[tuple[str, str]]:
    """The cgroups that we are in: controllers (v2: none) and path (proc_pid_cgroup(5)); empty where that is unknown."""
    try:
        # Whoever a subtree is delegated to may give cgroups names of any bytes.
        lines = os.fsdecode(proc.read_bytes()).split("\n")
    except OSError:
        return []
    return [
        (controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1)
    ]


def oom_file(proc: Path = PROC, mounted: Path = MOUNTED) -> Path | None:
    """The file that counts the out-of-memory kills in our cgroup; None where there is none."""
    for controllers, path in cgroups(proc):
        inside = PurePosixPath(path.lstrip("/"))
        # In a container without a cgroup namespace the path is the host's, and what is mounted is our own.
        if not controllers:
            found = [root / place / _V2 for root in (mounted, mounted / "unified") for place in (inside, ".")]
        elif "memory" in controllers.split(","):
            found = [mounted / "memory" / place / _V1 for place in (inside, ".")]
        else:
            continue
        for file in found:
            if file.is_file():
                return file
    return None


class OomKills:
    """Counts out-of-memory kills in our cgroup, children included as long as they stay in it."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._seen = self.count()

    def count(self) -> int | None:
        """How many there were since the cgroup was made; None where that cannot be known."""
        if self.file is None:
            return None
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return None
        found = dict(line.split(maxsplit=1) for line in lines if " " in line)
        try:
            return int(found["oom_kill"])
        except (KeyError, ValueError):
            return None

    def another(self) -> tuple[int, int] | None:
        """The counts before and now, where there were kills since this was last asked, or this was made."""
        before, now = self._seen, self.count()
        if now is not None:
            self._seen = now
        return (before, now) if before is not None and now is not None and now > before else None
