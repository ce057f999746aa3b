"""How late the event loop is, looked at for a moment after each scrape: nothing runs where nobody asks."""

from __future__ import annotations

import asyncio

# Upper ends of what lateness is sorted into, in seconds.
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LOOKS = 10
_PAUSE = 0.05


class LoopLag:
    """``counts`` has one more than `BOUNDS` has: what is later than all of them; ``total`` in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self._left = 0

    def look(self) -> None:
        """Set ten timers, one after the other, and see how late each comes; within half a second or so."""
        idle = not self._left
        self._left = _LOOKS
        if idle:
            self._set()

    def _set(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _PAUSE
        loop.call_at(due, self._came, due)

    def _came(self, due: float) -> None:
        # The clock of uvloop's timers has milliseconds.
        late = max(0.0, asyncio.get_running_loop().time() - due)
        self.total += late
        self.counts[next((at for at, bound in enumerate(BOUNDS) if late <= bound), len(BOUNDS))] += 1
        self._left -= 1
        if self._left:
            self._set()
