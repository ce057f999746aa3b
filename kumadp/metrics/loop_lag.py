"""Lag of the event loop, measured for a moment after each scrape (nothing runs between scrapes), and its tasks."""

from __future__ import annotations

import asyncio

# Upper bounds of the histogram's buckets (seconds).
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TIMERS_PER_MEASUREMENT = 10
_PAUSE = 0.05


class LoopLag:
    """``counts`` has one bucket more than `BOUNDS`, for larger values; ``total`` in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self._pending_timers = 0

    def tasks(self) -> int:
        """Return how many tasks the running event loop has."""
        return len(asyncio.all_tasks())

    def measure(self) -> None:
        """Set ten timers, one after the other, and record how late each fires; takes about half a second."""
        idle = not self._pending_timers
        self._pending_timers = _TIMERS_PER_MEASUREMENT
        if idle:
            self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _PAUSE
        loop.call_at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        # May be negative: the clock of uvloop's timers has a resolution of milliseconds.
        late = max(0.0, asyncio.get_running_loop().time() - due)
        self.total += late
        self.counts[next((index for index, bound in enumerate(BOUNDS) if late <= bound), len(BOUNDS))] += 1
        self._pending_timers -= 1
        if self._pending_timers:
            self._set_timer()
