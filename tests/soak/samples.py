"""What a data plane uses in the course of a long run, and how fast that grows."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import psutil

from tests.support.descriptors import open_descriptors
from tests.support.process_memory import pss

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = 86_400.0
# Pairs of samples whose slopes are compared; more add nothing but time.
_MOST_SAMPLES = 600

Point = tuple[float, float]
"""Seconds since the beginning, and a value."""


def measure(pid: int) -> dict[str, float]:
    """Return numbers of descriptors, sockets and threads of a process, and its proportional memory (PSS) in MiB."""
    descriptors = open_descriptors(pid)
    return {
        "descriptors": len(descriptors),
        "sockets": sum(target.startswith("socket:") for _, target in descriptors),
        "threads": psutil.Process(pid).num_threads(),
        "memory": pss(pid),
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
