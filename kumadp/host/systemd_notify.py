"""Notifications to the service manager: the protocol of sd_notify(3) over its datagram socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("kumadp.host")

# Longest line of status, for `systemctl status`; systemd accepts datagrams of some kilobytes.
_MAX_STATUS = 1000
# Notifications queued while the service manager does not read; older ones are of no interest.
_MAX_QUEUED = 16


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the seconds between two keep-alives, a third of what sd_watchdog_enabled(3) allows; None: no watchdog.

    A WATCHDOG_PID that is not ours means another process.
    """
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        ours = int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return microseconds / 3_000_000 if ours and microseconds > 0 else None


class Notifier:
    """Sends notifications in order without blocking: what the socket does not take is sent once it does.

    Does nothing if the service manager names no socket (``NOTIFY_SOCKET``).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._waiting: deque[bytes] = deque(maxlen=_MAX_QUEUED)
        self._socket: socket.socket | None = None
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @property
    def listens(self) -> bool:
        """Whether there is a service manager to notify."""
        return self._socket is not None

    def ready(self, text: str) -> None:
        """Report that the start, or a reload, has ended."""
        self._send("READY=1", status(text))

    def reloading(self, text: str) -> None:
        """Report that a reload begins; `ready` ends it. The time is for Type=notify-reload (systemd 253)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", status(text))

    def stopping(self, text: str) -> None:
        """Report that the shutdown begins."""
        self._send("STOPPING=1", status(text))

    def status(self, text: str) -> None:
        """Send one line of text for `systemctl status`."""
        self._send(status(text))

    def alive(self) -> None:
        """Send a keep-alive for the watchdog."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Request this much more time, from now on, for the start or the shutdown."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def close(self) -> None:
        """Close the socket; nothing is sent any more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket)
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        self._waiting.append("\n".join(lines).encode())
        self._flush()

    def _flush(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._socket)
        try:
            # Connect each time: a service manager that was replaced has bound the name again.
            self._socket.connect(self._address)
            while self._waiting:
                self._socket.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            loop.add_writer(self._socket, self._flush)
        except OSError as error:
            log.warning("the service manager cannot be notified: %s", error.strerror or error)
            self._waiting.clear()


def status(text: str) -> str:
    """Return the STATUS field for a text: control characters, which would end it, become spaces."""
    return "STATUS=" + "".join(letter if letter.isprintable() else " " for letter in text)[:_MAX_STATUS]
