"""Liveness of a running Envoy: readiness follows it within 10 s; `kumadp.envoy.hang_watch` restarts Envoy, not this.

Envoy's main thread answers its admin. One that is stopped or deadlocked takes no configuration and accepts no change of
health, and its workers may do nothing either, so that others should send traffic elsewhere. One that works on a large
change, which takes seconds to minutes with a thousand services, is silent too, but its workers serve: all data planes
of a mesh get such a change at the same time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.host.process_identity import stat_fields
from kumadp.process.progress import Progress, used_or

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.bootstrap.admin_address import AdminAddress

log = logging.getLogger("kumadp.envoy")

# How long a silent Envoy counts as busy while its main thread uses the processor (seconds).
BUSY_AT_MOST = 600.0
# Errors of this process or of the host, which mean nothing for Envoy (connect(2), socket(2)).
_LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EACCES})
_REQUEST = b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_LARGEST = 16 * 1024
_STATE = re.compile(rb"\b(LIVE|DRAINING|PRE_INITIALIZING|INITIALIZING)\b")
_LIVE = "LIVE"
_STOPPED = "it is stopped (SIGSTOP)"
_SILENT = "no answer from its admin"


class LivenessCheck(Struct):
    """Sends a request each ``period`` seconds, for at most ``timeout`` seconds; reports ``failures`` in a row.

    With these figures silence is reported 3 to 7.5 s after it began, unless the main thread moves
    (`kumadp.process.progress`). ``on_unresponsive`` gets the reason at each further failure, and "" once Envoy answers
    again.
    """

    on_unresponsive: Callable[[str], None]
    period: float = 3.0
    timeout: float = 1.5
    failures: int = 3
    _failed: int = 0
    _pid: int = 0
    _why: str = ""
    _reported: bool = False
    _silent_since: float = 0.0
    _progress: Progress | None = None

    def reset(self) -> None:
        """Start over: there is no Envoy to check."""
        self._failed, self._pid, self._why, self._reported, self._progress = 0, 0, "", False, None

    async def check(self, pid: int, admin: AdminAddress | None) -> float:
        """Check once; returns the pause until the next check in seconds.

        ``admin`` None: it cannot be queried now, and what was not reported yet stays so. That Envoy is stopped
        (SIGSTOP) is detected even then.
        """
        if pid != self._pid:
            self.reset()
            self._pid = pid
        loop = asyncio.get_running_loop()
        begun, cpu = loop.time(), used_or(pid, 0.0)
        if is_stopped(pid):
            why = _STOPPED
        elif admin is not None:
            why = await self._query(admin)
        elif not self._reported and self._why != _STOPPED:
            return self.period
        else:
            # All that can be checked is that it is not stopped any more.
            why = self._why if self._why != _STOPPED else ""
        if not why:
            if self._reported:
                self.on_unresponsive("")
            self._failed, self._why, self._reported, self._progress = 0, "", False, None
            return self.period
        self._failed, self._why = self._failed + 1, why
        works = why == _SILENT and self._works(begun, cpu, loop.time())
        if self._failed >= self.failures and (self._reported or not works):
            self._reported = True
            self.on_unresponsive(f"Envoy does not serve: {why}")
        elif self._failed == self.failures:
            log.info("Envoy's admin does not answer as its main thread is busy: changes wait, traffic flows")
        return max(self.timeout - (loop.time() - begun), 0.0)

    def _works(self, begun: float, cpu: float, now: float) -> bool:
        """Return whether an Envoy that did not answer from ``begun`` to ``now`` is busy; ``cpu`` is as of ``begun``."""
        if self._progress is None:
            self._silent_since = begun
            self._progress = Progress(self.timeout * self.failures, begun, cpu)
        self._progress.note(now, used_or(self._pid, cpu))
        return self._progress.remaining > 0 and now - self._silent_since < BUSY_AT_MOST

    async def _query(self, admin: AdminAddress) -> str:
        """Return why Envoy does not answer that it is LIVE; "" if it does, or if that cannot be checked."""
        try:
            state = await get_state(admin, self.timeout)
        except (TimeoutError, BlockingIOError):
            # The second one: the queue of its Unix socket is full, as it accepts nobody.
            return _SILENT
        except OSError as error:
            return "" if error.errno in _LOCAL_ERRORS else f"{_SILENT} ({error.strerror or error})"
        return "" if state == _LIVE else f"it is {state or 'not LIVE'}"


async def get_state(admin: AdminAddress, timeout: float) -> str:
    """Return the state that ``GET /ready`` names (Envoy docs: ServerInfo.State); raises TimeoutError, OSError.

    Without an HTTP library: this is done for as long as Envoy runs, and costs a tenth.
    """
    async with asyncio.timeout(timeout):
        if isinstance(admin, UnixAdmin):
            reader, writer = await asyncio.open_unix_connection(admin.path)
        else:
            reader, writer = await asyncio.open_connection(admin.host, admin.port)
        try:
            writer.write(_REQUEST)
            answer = bytearray()
            while len(answer) < _LARGEST and (data := await reader.read(_LARGEST)):
                answer += data
        finally:
            writer.close()
    if not answer:
        raise ConnectionResetError(errno.ECONNRESET, "connection closed without an answer")
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    match = _STATE.search(body)
    ok = head.split(b" ", 2)[1:2] == [b"200"]
    return _LIVE if ok else match[1].decode() if match is not None else ""


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal (proc_pid_stat(5)); False if that cannot be read."""
    try:
        fields = stat_fields(Path(f"/proc/{pid}/stat").read_bytes())
    except OSError:
        return False
    return fields[:1] == [b"T"]
