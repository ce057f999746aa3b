"""Reads a child's output, line by line, so that the child never blocks and nothing grows without bound."""

from __future__ import annotations

import asyncio
import collections
import fcntl
import logging
import os

MAX_LINE = 64 * 1024
KEPT_LINES = 200


class LogPump:
    """Owns the read end of a child's output pipe; each line goes to logger ``kumadp.child.<name>``.

    Lines longer than 64 KiB are cut. The last 200 lines are kept for the story of the child's death.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self._log = logging.getLogger(f"kumadp.child.{name}")
        self._lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._buffer = bytearray()
        self._cutting = False
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._readable)

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

    def _close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _tell(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip()
        if len(line) > MAX_LINE:
            text += " [cut]"
        self._lines.append(text)
        self._log.info("%s", text)
