"""Concurrent probes of one application are limited: an application that hangs must not delay the others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

MAX_PROBES_PER_APPLICATION = 20


class ApplicationSlots:
    """Slots by application; nothing is stored for those without probes."""

    def __init__(self) -> None:
        # With the number of probes that use it or wait for it.
        self._slots: dict[Hashable, tuple[asyncio.Semaphore, list[int]]] = {}

    @contextlib.asynccontextmanager
    async def take(self, application: Hashable) -> AsyncIterator[None]:
        """Hold a slot of an application; waits for one."""
        slots, users = self._slots.setdefault(application, (asyncio.Semaphore(MAX_PROBES_PER_APPLICATION), [0]))
        users[0] += 1
        try:
            async with slots:
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._slots.pop(application, None)
