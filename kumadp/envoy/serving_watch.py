"""Waits until an Envoy that comes up serves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Pauses between two queries (seconds): short ones after an event, then ever longer ones.
FIRST, LONGEST, GROWS = 0.02, 0.25, 1.3


class ServingWatch:
    """Queries whether Envoy serves: at once after an `event` that may have brought it there, and in between.

    ``first`` and ``longest`` are pauses in seconds.
    """

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self._event = asyncio.Event()

    def event(self) -> None:
        """Query at once, e.g. as Envoy has accepted a configuration."""
        self._event.set()

    async def until(self, serves: Callable[[], Awaitable[bool]]) -> None:
        """Return once ``serves`` returns True."""
        pause = self._first
        while True:
            self._event.clear()
            if await serves():
                return
            pause = self._first if await self._event_within(pause) else min(pause * GROWS, self._longest)

    async def _event_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        return self._event.is_set()
