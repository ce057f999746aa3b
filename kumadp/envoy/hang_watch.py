"""Detection of an Envoy that hangs, as opposed to one that is busy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.process.progress import main_thread_ticks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class HangWatch(Struct, frozen=True):
    """Checks every ``interval`` seconds; ``limit`` seconds without CPU and without an answer are a hang."""

    interval: float = 10.0
    limit: float = 60.0

    async def hangs(self, pid: int, answers: Callable[[], Awaitable[bool]]) -> bool:
        """Return True once the main thread of ``pid`` has used no CPU for ``limit`` seconds and the admin is silent.

        A large cluster update can block Envoy's main thread for a minute, during which its admin is silent too: only
        CPU time shows the difference. An Envoy that uses CPU gets no request at all. Time during which the CPU time
        cannot be read does not count, nor that in which kumadp was stopped, as Envoy may have been with it. Returns
        False when the process has ended.
        """
        loop = asyncio.get_running_loop()
        used, since = -1, loop.time()
        looked = since
        while True:
            if loop.time() - looked >= self.interval + self.limit:
                since = loop.time()
            looked = loop.time()
            try:
                now = main_thread_ticks(pid)
            except OSError:
                now, used = -1, -2
            if now is None:
                return False
            if now != used:
                used, since = now, loop.time()
            elif loop.time() - since >= self.limit:
                # The request wakes it, if it can wake: one that was merely idle answers.
                if await answers():
                    since = loop.time()
                elif _is_unchanged(pid, used):
                    return True
            await asyncio.sleep(self.interval)


def _is_unchanged(pid: int, used: int) -> bool:
    try:
        return main_thread_ticks(pid) == used
    except OSError:
        return False
