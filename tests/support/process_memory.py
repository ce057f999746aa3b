"""What a process holds."""

from __future__ import annotations

from pathlib import Path


def pss(pid: int) -> float:
    """Proportional set size in MiB; raises OSError if the process is gone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
