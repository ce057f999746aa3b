"""What a data plane uses in the course of a long run, and how fast that grows."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = 86_400.0
# Pairs of samples whose slopes are compared; more add nothing but time.
_MOST_SAMPLES = 600

Point = tuple[float, float]
"""Seconds since the beginning, and a value."""


def measure(pid: int) -> dict[str, float]:
    """Return numbers of descriptors, sockets and threads of a process, and its proportional memory (PSS) in MiB."""
    links = []
    for path in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            links.append(str(path.readlink()))
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {
        "descriptors": len(links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": psutil.Process(pid).num_threads(),
        "memory": next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024,
    }


def growth_per_day(points: Sequence[Point]) -> float:
    """Return the growth in 24 h: the median of the slopes between all samples (Theil and Sen), without outliers."""
    step = max(1, len(points) // _MOST_SAMPLES)
    chosen = points[::step]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(chosen)
        for later in chosen[index + 1 :]
    ]
    return statistics.median(slopes) * DAY if slopes else 0.0


def rise(points: Sequence[Point]) -> float:
    """Return how much higher the last third is than the first one, by their medians."""
    third = len(points) // 3
    if not third:
        return 0.0
    first, last = ([value for _, value in part] for part in (points[:third], points[-third:]))
    return statistics.median(last) - statistics.median(first)
