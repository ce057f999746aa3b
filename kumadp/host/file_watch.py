"""Sees that files changed: by inotify, or by looking once a second where the kernel grants no watch."""

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

# Only without inotify.
LOOK_EVERY = 1.0


def folders_of(path: Path) -> frozenset[Path]:
    """The folders whose entries decide what is read: where ``path`` is, itself, and where symbolic links lead.

    The parent tells of a folder that is deleted and made anew, the target's folder of a linked file that is written.
    """
    path = path.absolute()
    found = {path.parent}
    links = [path]
    if path.is_dir():
        found.add(path)
        with contextlib.suppress(OSError):
            links += path.iterdir()
    for link in links:
        if link.is_symlink():
            with contextlib.suppress(OSError, RuntimeError):
                found.add(link.resolve().parent)
    return frozenset(folder for folder in found if folder.is_dir())


class FileWatch:
    """Calls ``changed`` after anything that may matter; what really changed is for the reader to find out."""

    def __init__(self, paths: Iterable[Path], changed: Callable[[], None]) -> None:
        self._paths = tuple(paths)
        self._changed = changed
        self._inotify: Inotify | None = None
        self._failed = asyncio.Event()

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled. ``up`` and ``changed`` are called once nothing can be missed any more."""
        events: asyncio.Task[None] | None = None
        try:
            self._open()
            up()
            self._changed()
            if self._inotify is not None:
                events = asyncio.create_task(self._listen(self._inotify), name="inotify")
            await self._failed.wait()
            while True:
                await asyncio.sleep(LOOK_EVERY)
                self._changed()
        finally:
            if events is not None:
                events.cancel()
            if self._inotify is not None:
                self._inotify.close()

    def follow(self) -> None:
        """Watch what matters now; to be called before the files are read again."""
        if self._inotify is None:
            return
        from asyncinotify import Mask

        mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE | Mask.ATTRIB
        try:
            # A file that is mounted here, as a container's resolv.conf, is written where it comes from.
            files = {path for path in self._paths if path.is_file()}
            for place in files.union(*map(folders_of, self._paths)):
                # Always, not only when new: a folder made anew may have the path and the inode of the old one.
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
                    self._changed()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._failed.is_set():
            log.warning(
                "%s cannot be watched (%s), so it is looked at every %.0f s: raise fs.inotify.max_user_watches or "
                "fs.inotify.max_user_instances",
                ", ".join(map(str, self._paths)),
                error.strerror or error,
                LOOK_EVERY,
            )
        self._failed.set()


def _matters(event: Event) -> bool:
    """Whether to read again. Not for a file that was only made: its closing is told too, a link's is not."""
    from asyncinotify import Mask

    if not event.mask & Mask.CREATE or event.path is None:
        return True
    try:
        entry = event.path.lstat()
    except OSError:
        return True
    return not (event.path.is_file() and not event.path.is_symlink() and entry.st_nlink == 1)
