"""What the service manager is told, and asks for: the protocol of sd_notify(3) over its datagram socket."""

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

# A line of status is for `systemctl status`; systemd takes datagrams of some kilobytes.
_LONGEST = 1000
# What waits for a service manager that does not read; of an older state nobody wants to know.
_MOST_WAITING = 16


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life: a third of what sd_watchdog_enabled(3) allows; None where none are wanted.

    A WATCHDOG_PID that is not ours means somebody else.
    """
    try:
        wanted = int(environ.get("WATCHDOG_USEC", ""))
        ours = int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return wanted / 3_000_000 if ours and wanted > 0 else None


class Notifier:
    """Sends states in their order and never waits: what the socket does not take is sent once it does.

    Does nothing where the service manager names no socket (``NOTIFY_SOCKET``).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._socket: socket.socket | None = None
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @property
    def listens(self) -> bool:
        """Whether a service manager wants to know."""
        return self._socket is not None

    def ready(self, text: str) -> None:
        """Starting, or reloading, is over."""
        self._send("READY=1", status(text))

    def reloading(self, text: str) -> None:
        """A reload begins; `ready` ends it. The time is for Type=notify-reload (systemd 253)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", status(text))

    def stopping(self, text: str) -> None:
        """The end begins."""
        self._send("STOPPING=1", status(text))

    def status(self, text: str) -> None:
        """One line for people."""
        self._send(status(text))

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Starting or stopping needs this much longer, from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def close(self) -> None:
        """Send nothing any more."""
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
            # Again each time: a service manager that was replaced has bound the name anew.
            self._socket.connect(self._address)
            while self._waiting:
                self._socket.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            loop.add_writer(self._socket, self._flush)
        except OSError as error:
            log.warning("the service manager cannot be told: %s", error.strerror or error)
            self._waiting.clear()


def status(text: str) -> str:
    """The field for a line of status: control characters, which would end it, become spaces."""
    return "STATUS=" + "".join(one if one.isprintable() else " " for one in text)[:_LONGEST]
