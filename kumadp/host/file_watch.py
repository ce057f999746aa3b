"""Detects changes of files: by inotify, or by polling once a second if the kernel grants no watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from asyncinotify import Event, Inotify

log = logging.getLogger("kumadp.host")

# Without inotify, in seconds.
POLL_INTERVAL = 1.0


def folders_of(path: Path) -> frozenset[Path]:
    """Return the folders whose entries decide what is read: of ``path``, itself, and of the targets of its links.

    The parent shows that a folder was deleted and created again, a target's folder that a linked file was written.
    """
    path = path.absolute()
    folders = {path.parent}
    links = [path]
    if path.is_dir():
        folders.add(path)
        with contextlib.suppress(OSError):
            links += path.iterdir()
    for link in links:
        if link.is_symlink():
            with contextlib.suppress(OSError, RuntimeError):
                folders.add(link.resolve().parent)
    return frozenset(folder for folder in folders if folder.is_dir())


class FileWatch:
    """Calls ``on_change`` after anything that may have changed the files; the caller finds out what did."""

    def __init__(self, paths: Iterable[Path], on_change: Callable[[], None]) -> None:
        self._paths = tuple(paths)
        self._on_change = on_change
        self._inotify: Inotify | None = None
        self._failed = asyncio.Event()

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled. Calls ``up`` and ``on_change`` once no change can be missed any more."""
        events: asyncio.Task[None] | None = None
        try:
            self._open()
            up()
            self._on_change()
            if self._inotify is not None:
                events = asyncio.create_task(self._listen(self._inotify), name="inotify")
            await self._failed.wait()
            while True:
                await asyncio.sleep(POLL_INTERVAL)
                self._on_change()
        finally:
            if events is not None:
                events.cancel()
            if self._inotify is not None:
                self._inotify.close()

    def follow(self) -> None:
        """Watch the folders that matter now; to be called before the files are read again."""
        if self._inotify is None:
            return
        from asyncinotify import Mask

        mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE | Mask.ATTRIB
        try:
            # A bind-mounted file, as resolv.conf in a container, is written outside the folders seen here.
            files = {path for path in self._paths if path.is_file()}
            for place in files.union(*map(folders_of, self._paths)):
                # Always, not only when new: a folder created again may have the path and the inode of the old one.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._inotify.add_watch(place, mask)
        except OSError as error:
            self._give_up(error)

    def _open(self) -> None:
        from asyncinotify import Inotify

        try:
            self._inotify = Inotify()
        except OSError as error:
            self._give_up(error)
        self.follow()

    async def _listen(self, inotify: Inotify) -> None:
        try:
            async for event in inotify:
                if _matters(event):
                    self._on_change()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._failed.is_set():
            log.warning(
                "%s cannot be watched (%s), so it is polled every %.0f s: raise fs.inotify.max_user_watches or "
                "fs.inotify.max_user_instances",
                ", ".join(map(str, self._paths)),
                error.strerror or error,
                POLL_INTERVAL,
            )
        self._failed.set()


def _matters(event: Event) -> bool:
    """Return whether to read again. Not after the creation of a file: closing it is an event too, unlike a link."""
    from asyncinotify import Mask

    if not event.mask & Mask.CREATE or event.path is None:
        return True
    try:
        entry = event.path.lstat()
    except OSError:
        return True
    return not (event.path.is_file() and not event.path.is_symlink() and entry.st_nlink == 1)
