"""Notifications to systemd: ready, reloading, stopping, a status line, and that the run loop is alive."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING

from kumadp.core.events import WatchdogTick
from kumadp.core.phases import Phase
from kumadp.host.systemd_notify import Notifier, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.core.context import Context

# While everything is being stopped, and while an Envoy comes up and moves, systemd's timeout is extended by this again
# and again (seconds): a run loop that is alive has its own deadlines, and one that hangs is killed after this.
_EXTENSION = 15.0
_EXTEND_EACH = 5.0


class SystemdNotifier:
    """Follows the status; the run loop calls `beat` when it handles the event that is posted for it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._status = context.status
        self._notifier = Notifier(context.environ)
        self._interval = watchdog_interval(context.environ)
        self._sent_ready = self._sent_stopping = self._is_reloading = False
        self._extended_at = -math.inf
        self._sent = ""
        self._timer: asyncio.TimerHandle | None = None
        if self._notifier.listens:
            context.status.moved.append(self._moved)
            context.status.changed.append(self._send_line)
            context.status.progressed.append(self._extend)

    def start(self) -> None:
        """Send the first line; to be called on the event loop."""
        if not self._notifier.listens:
            return
        self._send_line()
        self.beat()

    def beat(self) -> None:
        """Report that the run loop is alive: it handles the posted event. The next one is posted in time."""
        if not self._notifier.listens:
            return
        ending = self._status.phase in {Phase.DRAINING, Phase.STOPPING}
        if self._interval is not None:
            self._notifier.alive()
        if ending:
            self._notifier.extend(_EXTENSION)
        pause = min(self._interval or _EXTEND_EACH, _EXTEND_EACH) if ending else self._interval
        if self._timer is not None:
            self._timer.cancel()
        if pause is not None:
            self._timer = asyncio.get_running_loop().call_later(pause, lambda: self._context.post(WatchdogTick()))

    @property
    def _was_ready(self) -> bool:
        """Whether systemd was notified of READY: by this kumadp, or by the previous one in this process."""
        return self._sent_ready or (self._context.previous.reexecuted and self._context.previous.ready)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Report a reload for as long as this is entered, unless systemd still waits for the first READY."""
        was_ready = self._was_ready
        if was_ready:
            self._notifier.reloading("reloading")
        self._is_reloading = was_ready
        try:
            yield
        finally:
            self._is_reloading = False
            if was_ready and self._status.phase in {Phase.READY, Phase.STARTING}:
                self._notifier.ready(self._line())

    def close(self) -> None:
        """Send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._notifier.close()

    def _extend(self) -> None:
        """Extend the timeout of a start or a reload, which ends an Envoy that comes up slowly otherwise.

        Not while it just runs: systemd would extend RuntimeMaxSec.
        """
        now = time.monotonic()
        if (self._is_reloading or not self._was_ready) and now - self._extended_at >= _EXTEND_EACH:
            self._extended_at = now
            self._notifier.extend(_EXTENSION)

    def _moved(self, phase: Phase, _why: str) -> None:
        self._sent = self._line()
        if phase is Phase.READY:
            self._sent_ready = True
            self._notifier.ready(self._sent)
        elif phase in {Phase.DRAINING, Phase.STOPPING} and not self._sent_stopping:
            self._sent_stopping = True
            self._notifier.stopping(self._sent)
            self.beat()
        else:
            self._notifier.status(self._sent)

    def _send_line(self) -> None:
        line = self._line()
        if line != self._sent:
            self._sent = line
            self._notifier.status(line)

    def _line(self) -> str:
        """The state in one line: the phase, and what prevents readiness or else what is wrong."""
        status = self._status
        reasons = [f"{part}: {reason}" for part, reason in status.reasons.items()]
        warnings = [f"{part}: {warning}" for part, warning in status.warnings.items()]
        parts = reasons if status.phase is Phase.STARTING and reasons else [status.phase_why, *warnings]
        return f"{status.phase.value}: {'; '.join(parts)}"
