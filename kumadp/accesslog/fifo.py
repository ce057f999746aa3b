"""The FIFO that Envoy writes access logs into, read without ever waiting.

Envoy opens it as it opens any file of access logs, for writing alone, on its main thread, and writes from a thread of
its own, one per file: without a reader the former would wait, and the latter lose what it writes (EPIPE; Envoy never
opens it again). So it is opened for reading and writing: there is a reader as long as we live, and no writer's end is
an end for us. While the FIFO is full Envoy's thread waits, its workers do not: they go on in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
from typing import TYPE_CHECKING

from kumadp.host.descriptors import is_exhausted
from kumadp.host.private_file import open_own_fifo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What an ordinary user may ask for (pipe(7)).
SIZE = 1024 * 1024
# Read at once: as much as takes about a millisecond to be taken apart.
CHUNK = 64 * 1024
LONGEST_LINE = 1024 * 1024


def open_fifo(path: Path) -> tuple[int, bytes]:
    """Open the FIFO, and what was in it already. It is made anew unless an Envoy that lives writes to it.

    Raises OSError.
    """
    waiting = _waiting_in(path)
    if waiting is None:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    descriptor = open_own_fifo(path, os.O_RDWR)
    # Where so much is not allowed it is as large as it is.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, SIZE)
    return descriptor, waiting or b""


def remove_unheld(path: Path) -> None:
    """Remove the FIFO unless somebody still writes to it. What waits in it then stays, for the next one who reads."""
    if _waiting_in(path, take=False) is None:
        path.unlink(missing_ok=True)


def _waiting_in(path: Path, *, take: bool = True) -> bytes | None:
    """What waits in a FIFO of ours that somebody has open for writing; None where it is nothing of the kind.

    Without ``take`` nothing is taken out of it: empty. Raises OSError where this process has no descriptor left.
    """
    try:
        descriptor = open_own_fifo(path, os.O_RDONLY)
    except OSError as error:
        if is_exhausted(error):
            raise
        return None
    waiting = b""
    try:
        # What nobody has open holds nothing.
        if not take and _unread(descriptor):
            return b""
        # A read is the only one to tell "nothing yet" from "nobody": poll(2) does so for those alone that it saw come.
        while data := os.read(descriptor, SIZE):
            waiting += data
            if len(waiting) > 2 * SIZE:
                # Somebody writes faster than this reads: what follows is read as it comes.
                return waiting
    except BlockingIOError:
        return waiting
    finally:
        os.close(descriptor)
    return None


def _unread(descriptor: int) -> int:
    found: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
    return found


class LineReader:
    """Hands over whole lines, without their ends, as they come; owns the descriptor.

    ``too_long`` hears of each line that was thrown away for its length, ``behind`` that the FIFO was found full.
    """

    def __init__(
        self,
        descriptor: int,
        take: Callable[[list[bytes]], None],
        too_long: Callable[[], None],
        behind: Callable[[], None],
        waiting: bytes = b"",
    ) -> None:
        self.descriptor = descriptor
        self._take = take
        self._too_long = too_long
        self._behind = behind
        self._rest = b""
        self._cutting = False
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._most = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        self._waiting = waiting

    @property
    def rest(self) -> bytes:
        """What was read and is not handed over yet: the beginning of a line."""
        return self._waiting + self._rest

    def start(self) -> None:
        """Read from now on."""
        waiting, self._waiting = self._waiting, b""
        self._split(waiting)
        asyncio.get_running_loop().add_reader(self.descriptor, self._readable)

    def drain(self) -> None:
        """Read what is there, at most what a FIFO holds. Somebody who still writes is not waited for."""
        left = 2 * self._most
        while left > 0 and (read := self._readable()):
            left -= read

    def close(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self.descriptor)
        os.close(self.descriptor)

    def _readable(self) -> int:
        if not self._room.poll(0):
            self._behind()
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return 0
        self._split(data)
        return len(data)

    def _split(self, data: bytes) -> None:
        lines = data.split(b"\n")
        if len(lines) > 1:
            lines[0] = self._rest + lines[0]
            self._rest = b""
        rest = lines.pop()
        if lines and self._cutting:
            del lines[0]
            self._cutting = False
        if not self._cutting:
            self._rest += rest
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._cutting = b"", True
            self._too_long()
        if lines:
            self._take(lines)
