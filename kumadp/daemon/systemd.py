"""What systemd hears of this run: ready, reloading, stopping, a line of status, and that the run loop lives."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from kumadp.core.phases import Phase
from kumadp.daemon.loop import Beat
from kumadp.host.systemd_notify import Notifier, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.core.context import Run

# While something is being ended, systemd is asked for this long again and again (seconds): as long as the run loop
# lives it has deadlines of its own, and one that hangs is killed after this.
_EXTENSION = 15.0
_EXTEND_EACH = 5.0


class Notifying:
    """Follows the status; `beat` is to be called by the run loop when it takes up the event that is posted for it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._status = run.status
        self._notifier = Notifier(run.environ)
        self._interval = watchdog_interval(run.environ)
        self._told_ready = self._told_stopping = False
        self._told = ""
        self._timer: asyncio.TimerHandle | None = None
        if self._notifier.listens:
            run.status.moved.append(self._moved)
            run.status.changed.append(self._tell)

    def start(self) -> None:
        """Begin with signs of life; on the event loop."""
        if not self._notifier.listens:
            return
        self._tell()
        self.beat()

    def beat(self) -> None:
        """The run loop has come to the event that was posted: it lives. The next one is posted in time."""
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
            self._timer = asyncio.get_running_loop().call_later(pause, lambda: self._run.post(Beat()))

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload is going on in here. Where systemd waits for the first READY it would take the end for that one."""
        # A kumadp before us in this process was ready already.
        was_ready = self._told_ready or (self._run.before.reexecuted and self._run.before.ready)
        if was_ready:
            self._notifier.reloading("reloading")
        try:
            yield
        finally:
            if was_ready and self._status.phase in {Phase.READY, Phase.STARTING}:
                self._notifier.ready(self._line())

    def close(self) -> None:
        """Tell nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._notifier.close()

    def _moved(self, phase: Phase, _why: str) -> None:
        self._told = self._line()
        if phase is Phase.READY:
            self._told_ready = True
            self._notifier.ready(self._told)
        elif phase in {Phase.DRAINING, Phase.STOPPING} and not self._told_stopping:
            self._told_stopping = True
            self._notifier.stopping(self._told)
            self.beat()
        else:
            self._notifier.status(self._told)

    def _tell(self) -> None:
        line = self._line()
        if line != self._told:
            self._told = line
            self._notifier.status(line)

    def _line(self) -> str:
        """The state in one line: the phase, and what holds it back or else what is wrong."""
        status = self._status
        reasons = [f"{part}: {reason}" for part, reason in status.reasons.items()]
        concerns = [f"{part}: {concern}" for part, concern in status.concerns.items()]
        said = reasons if status.phase is Phase.STARTING and reasons else [status.phase_why, *concerns]
        return f"{status.phase.value}: {'; '.join(said)}"
