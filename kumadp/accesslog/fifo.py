"""The FIFO that Envoy writes access logs into, read without blocking.

Envoy opens it like any access log file, for writing only, on its main thread, and writes from a separate thread per
file: without a reader the open would block and the writes would be lost (EPIPE; Envoy never opens it again). So we open
it for reading and writing: there is a reader as long as this process runs, and no end of file when a writer closes it.
While the FIFO is full Envoy's writing thread blocks, but not its workers, which buffer in memory.
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

# The largest size for unprivileged users (pipe(7)).
SIZE = 1024 * 1024
# Bytes per read: parsing them takes about a millisecond.
CHUNK = 64 * 1024
LONGEST_LINE = 1024 * 1024


def open_fifo(path: Path) -> tuple[int, bytes]:
    """Open the FIFO; return its descriptor and its content. It is created again unless a running Envoy writes to it.

    Raises OSError.
    """
    waiting = _waiting_in(path)
    if waiting is None:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    descriptor = open_own_fifo(path, os.O_RDWR)
    # A lower limit leaves the default size.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, SIZE)
    return descriptor, waiting or b""


def remove_unheld(path: Path) -> None:
    """Remove the FIFO unless a process still has it open for writing; its content then stays for the next reader."""
    if _waiting_in(path, take=False) is None:
        path.unlink(missing_ok=True)


def _waiting_in(path: Path, *, take: bool = True) -> bytes | None:
    """Return the content of a FIFO of ours that a process has open for writing; None if there is no such FIFO.

    Without ``take`` nothing is read, and the result is empty. Raises OSError if this process has no descriptor left.
    """
    try:
        descriptor = open_own_fifo(path, os.O_RDONLY)
    except OSError as error:
        if is_exhausted(error):
            raise
        return None
    waiting = b""
    try:
        # A FIFO that no process has open is empty.
        if not take and _unread(descriptor):
            return b""
        # Only read(2) distinguishes an empty FIFO from one without writers: poll(2) needs to have seen a writer.
        while data := os.read(descriptor, SIZE):
            waiting += data
            if len(waiting) > 2 * SIZE:
                # It is written faster than this reads: the rest is read later.
                return waiting
    except BlockingIOError:
        return waiting
    finally:
        os.close(descriptor)
    return None


def _unread(descriptor: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count


class LineReader:
    """Calls ``take`` with whole lines without their line ends; owns the descriptor.

    ``too_long`` is called for each line that was discarded for its length, ``behind`` whenever the FIFO was full.
    ``waiting`` was read before and comes first.
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
        self._capacity = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        self._waiting = waiting

    @property
    def rest(self) -> bytes:
        """The beginning of a line that was read but not passed on yet."""
        return self._waiting + self._rest

    def start(self) -> None:
        """Begin to read."""
        waiting, self._waiting = self._waiting, b""
        self._split(waiting)
        asyncio.get_running_loop().add_reader(self.descriptor, self._readable)

    def drain(self) -> None:
        """Read the content, at most twice the size of the FIFO, as a process may still write to it."""
        remaining = 2 * self._capacity
        while remaining > 0 and (count := self._readable()):
            remaining -= count

    def close(self) -> None:
        """Stop reading and close the descriptor."""
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
