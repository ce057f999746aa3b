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
import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("kumadp.process")

# Level marks of CoreDNS (plugin/pkg/log), and the first lines of a crash of Go's runtime.
_MARKED = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|FATAL|PANIC)\] |(?=panic: |fatal error: )")
_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING}

MAX_LINE = 64 * 1024
KEPT_LINES = 200


class OutputState(msgspec.Struct, frozen=True):
    """State of a child's output: an unfinished line, whether that is being cut, and the last lines.

    ``last_at`` is when the last line was read, by the monotonic clock; None if that is not known.
    """

    beginning: bytes = b""
    cutting: bool = False
    lines: tuple[str, ...] = ()
    last_at: float | None = None


class LogPump:
    """Owns the read end of a child's output; each line goes to logger ``kumadp.child.<name>``, with its own level.

    Lines longer than 64 KiB are cut. The last 200 lines are kept for the report of the child's death. ``descriptor`` is
    -1 if the output cannot be read. ``lossy`` is for a writer that never waits: once it is more than half of the pipe's
    capacity ahead of us, the rest is dropped, since a full pipe would silence an Envoy permanently (its stderr stays
    failed after one refused write). ``state`` continues where another pump stopped.
    """

    def __init__(self, name: str, descriptor: int, *, lossy: bool = False, state: OutputState | None = None) -> None:
        state = state or OutputState()
        self._name = name
        self._log = logging.getLogger(f"kumadp.child.{name}")
        self._lines: collections.deque[str] = collections.deque(state.lines, maxlen=KEPT_LINES)
        self._buffer = bytearray(state.beginning)
        self._cutting = state.cutting
        self._last_at = state.last_at
        self._lossy = lossy
        self._lost = 0
        self.fields: dict[str, object] = {}
        """Further fields of each line's log record, e.g. the epoch of an Envoy."""
        self._on_line: Callable[[str], object] = lambda _line: None
        self._descriptor = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
            asyncio.get_running_loop().add_reader(descriptor, self._readable)

    @property
    def descriptor(self) -> int:
        """The read end; -1 once it is closed."""
        return self._descriptor

    def watch(self, on_line: Callable[[str], object]) -> None:
        """Call ``on_line`` with each further line."""
        self._on_line = on_line

    def state(self) -> OutputState:
        """Return the state for a pump that continues after this one."""
        return OutputState(bytes(self._buffer), self._cutting, tuple(self._lines), self._last_at)

    @property
    def idle(self) -> float | None:
        """Seconds since the last line was read; None if that is not known."""
        return time.monotonic() - self._last_at if self._last_at is not None else None

    def tail(self, lines: int) -> list[str]:
        """Return the last lines, oldest first."""
        return list(self._lines)[-lines:]

    def drain(self) -> None:
        """Read the child's remaining output and close the pipe, even if a grandchild still holds it and writes."""
        if self._descriptor >= 0:
            # All output of the child is in the pipe now: more than its capacity is from another process.
            remaining = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
            while remaining > 0 and (read := self._readable()):
                remaining -= read
        self._close()
        if self._buffer:
            self._log_line(bytes(self._buffer))
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
                self._log_line(bytes(self._buffer))
            self._buffer.clear()
            self._cutting = False
        if not self._cutting:
            self._buffer += rest
        if len(self._buffer) > MAX_LINE:
            self._log_line(bytes(self._buffer))
            self._buffer.clear()
            self._cutting = True
        return len(data)

    def _skip(self) -> bool:
        """Drop output if the writer is too far ahead; return whether it was."""
        lost = 0
        size = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
        # Output that arrives in between is for the next turn of the loop.
        while lost <= size and self._waiting() > size // 2:
            lost += len(os.read(self._descriptor, MAX_LINE))
        if not lost:
            return False
        if not self._lost:
            log.warning(
                "%s writes faster than its lines can be logged: some are dropped, and if its FIFO was full, it may log "
                "nothing more until it is restarted (with --on-parent-death=kill it waits instead)",
                self._name,
            )
        self._lost += lost + MAX_LINE
        self._buffer.clear()
        self._cutting = True
        return True

    def _waiting(self) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
        return count

    def _close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _log_line(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip()
        self._on_line(text)
        if len(line) > MAX_LINE:
            text += " [cut]"
        self._lines.append(text)
        self._last_at = time.monotonic()
        level, text = _level_of(text)
        self._log.log(level, "%s", text, extra=self.fields)


def _level_of(line: str) -> tuple[int, str]:
    """Return the level mark of a line, and the line without it; INFO for a line without a mark, like Envoy's."""
    marked = _MARKED.match(line)
    if marked is None:
        return logging.INFO, line
    return _LEVELS.get(marked[1] or "", logging.ERROR), line[marked.end() :]
