"""An event loop whose clock moves only when it would wait: hours of timers pass in no time, and always the same way."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class Deadlock(RuntimeError):
    """The loop would wait without any timer: nothing would ever happen again."""


class _Selector(selectors.DefaultSelector):
    """Does not wait: time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready; else let the time pass."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock
            self.now += max(timeout, 0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio whose clock counts seconds from 0 on."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the time of this loop's clock."""
        return self._virtual.now
