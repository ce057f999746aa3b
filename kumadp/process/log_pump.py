"""Reads a child's output, line by line, so that the child never blocks and nothing grows without bound."""

from __future__ import annotations

import asyncio
import collections
import fcntl
import logging
import os
import re
import struct
import termios
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("kumadp.process")

# How CoreDNS begins its lines (plugin/pkg/log), and how the runtime of Go tells of its death.
_MARKED = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|FATAL|PANIC)\] |(?=panic: |fatal error: )")
_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING}

MAX_LINE = 64 * 1024
KEPT_LINES = 200


class OutputState(msgspec.Struct, frozen=True):
    """What was read of a child: a line without its end yet, whether that is being cut, and the last lines."""

    beginning: bytes = b""
    cutting: bool = False
    lines: tuple[str, ...] = ()


class LogPump:
    """Owns the read end of a child's output; each line goes to logger ``kumadp.child.<name>``, with its own level.

    Lines longer than 64 KiB are cut. The last 200 lines are kept for the story of the child's death. ``descriptor`` is
    -1 where the output cannot be had. ``lossy`` is for a writer that never waits: once it is more than half of what the
    pipe holds ahead of us, the rest is thrown away, since a full pipe would silence an Envoy for good (its stderr stays
    failed after one refused write). ``heard`` goes on where another pump was left.
    """

    def __init__(self, name: str, descriptor: int, *, lossy: bool = False, heard: OutputState | None = None) -> None:
        heard = heard or OutputState()
        self._name = name
        self._log = logging.getLogger(f"kumadp.child.{name}")
        self._lines: collections.deque[str] = collections.deque(heard.lines, maxlen=KEPT_LINES)
        self._buffer = bytearray(heard.beginning)
        self._cutting = heard.cutting
        self._lossy = lossy
        self._lost = 0
        self.about: dict[str, object] = {}
        """What else is told of each line, as an Envoy's epoch."""
        self.said: Callable[[str], object] = lambda _line: None
        """Hears each line too."""
        self._descriptor = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
            asyncio.get_running_loop().add_reader(descriptor, self._readable)

    @property
    def descriptor(self) -> int:
        """The read end; -1 once it is closed."""
        return self._descriptor

    def heard(self) -> OutputState:
        """What a pump that goes on after this one has to know."""
        return OutputState(bytes(self._buffer), self._cutting, tuple(self._lines))

    def tail(self, lines: int) -> list[str]:
        """The last lines, oldest first."""
        return list(self._lines)[-lines:]

    def drain(self) -> None:
        """Read what the child left and close the pipe. A grandchild may hold it, and write: that is not waited for."""
        if self._descriptor >= 0:
            # What the child itself wrote is in the pipe now: more than it holds comes from somebody else.
            left = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
            while left > 0 and (read := self._readable()):
                left -= read
        self._close()
        if self._buffer:
            self._tell(bytes(self._buffer))
            self._buffer.clear()

    def _readable(self) -> int:
        try:
            data = os.read(self._descriptor, MAX_LINE)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._close()
            return 0
        if self._lossy and len(data) == MAX_LINE and self._skip():
            return len(data)
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._buffer += line
            if self._buffer and not self._cutting:
                self._tell(bytes(self._buffer))
            self._buffer.clear()
            self._cutting = False
        if not self._cutting:
            self._buffer += rest
        if len(self._buffer) > MAX_LINE:
            self._tell(bytes(self._buffer))
            self._buffer.clear()
            self._cutting = True
        return len(data)

    def _skip(self) -> bool:
        """Throw away what is too far ahead; whether it was."""
        lost = 0
        size = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
        # What is written in between is for the next turn of the loop.
        while lost <= size and self._waiting() > size // 2:
            lost += len(os.read(self._descriptor, MAX_LINE))
        if not lost:
            return False
        if not self._lost:
            log.warning(
                "%s writes faster than its lines can be logged: some are thrown away, and should it have found its "
                "FIFO full, it may say nothing more until it is started again (--on-parent-death=kill makes it wait)",
                self._name,
            )
        self._lost += lost + MAX_LINE
        self._buffer.clear()
        self._cutting = True
        return True

    def _waiting(self) -> int:
        found: int = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
        return found

    def _close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _tell(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip()
        self.said(text)
        if len(line) > MAX_LINE:
            text += " [cut]"
        self._lines.append(text)
        level, text = _level_of(text)
        self._log.log(level, "%s", text, extra=self.about)


def _level_of(line: str) -> tuple[int, str]:
    """The level that a line names itself, and the line without it; INFO for one that names none, as Envoy's."""
    marked = _MARKED.match(line)
    if marked is None:
        return logging.INFO, line
    return _LEVELS.get(marked[1] or "", logging.ERROR), line[marked.end() :]
