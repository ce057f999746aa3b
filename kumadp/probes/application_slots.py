"""Concurrent probes of one application are limited: an application that hangs must not delay the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_PROBES_PER_APPLICATION = 20


class ApplicationSlots:
    """Slots by application; nothing is stored for those without probes."""

    def __init__(self) -> None:
        # With the number of probes that use it or wait for it.
        self._slots: dict[Hashable, tuple[asyncio.Semaphore, list[int]]] = {}

    def take(self, application: Hashable) -> ApplicationSlot:
        """Return a context that holds a slot of an application; it waits for one."""
        return ApplicationSlot(self._slots, application)


class ApplicationSlot:
    """A slot, held in an ``async with`` block."""

    __slots__ = ("_application", "_semaphore", "_slots", "_users")

    def __init__(self, slots: dict[Hashable, tuple[asyncio.Semaphore, list[int]]], application: Hashable) -> None:
        self._slots = slots
        self._application = application

    async def __aenter__(self) -> None:
        self._semaphore, self._users = self._slots.setdefault(
            self._application, (asyncio.Semaphore(MAX_PROBES_PER_APPLICATION), [0])
        )
        self._users[0] += 1
        try:
            await self._semaphore.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()
        self._leave()

    def _leave(self) -> None:
        self._users[0] -= 1
        if not self._users[0]:
            self._slots.pop(self._application, None)
