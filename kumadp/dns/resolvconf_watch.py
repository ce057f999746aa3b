"""Reports changes of resolv.conf."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.host.file_watch import FileWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

# Programs write the file in several steps: a change is over after this time without another one (seconds).
_SETTLE = 0.1


class ResolvConfWatch:
    """Calls ``on_change`` when a resolv.conf has another content or is another file.

    Programs replace the file, write in it, or replace the target of its symbolic link, which may be in another
    directory.
    """

    name = "resolv.conf"

    def __init__(self, path: Path, on_change: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._on_change = on_change
        self._notified = asyncio.Event()

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        previous = await asyncio.to_thread(_state_of, self._path)
        watch = FileWatch((self._path,), self._notified.set)
        watching = asyncio.create_task(watch.run(up), name="resolv.conf")
        try:
            while True:
                await self._notified.wait()
                await asyncio.sleep(_SETTLE)
                self._notified.clear()
                watch.follow()
                state = await asyncio.to_thread(_state_of, self._path)
                if state != previous:
                    previous = state
                    await self._on_change()
        finally:
            watching.cancel()


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what changes when the file is written or replaced; empty if there is no file. May block."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
