"""How long an Envoy takes to come up, by which the drain of the next hand-over is extended."""

from __future__ import annotations

import contextlib
import time

from kumadp.process.progress import processor_time

# Wall time of a block of the main thread, in times of its processor time: how busy a host is reckoned with.
_BUSY_HOST = 5.0
_LONGEST = 60.0


class StartTime:
    """For how long (seconds) the main thread of the next Envoy may block while it comes up, by the last one.

    Envoy 1.40 counts ``--parent-shutdown-time-s`` not from the moment at which it is LIVE, but from when the turn of
    its event loop began in which it became so (libevent's cached time). With 1,000 listeners on a busy host that is
    ten seconds earlier (measured): the old epoch would be ended before its connections have drained.
    """

    def __init__(self) -> None:
        self.blocks = 0.0
        self._began: dict[int, float] = {}

    def began(self, pid: int) -> None:
        """Note that a process was started, or adopted."""
        self._began[pid] = time.monotonic()

    def live(self, pid: int) -> None:
        """Note that it is LIVE."""
        took = time.monotonic() - self._began.get(pid, time.monotonic())
        self._began.clear()
        with contextlib.suppress(OSError):
            self.blocks = min(took, _BUSY_HOST * (processor_time(pid) or 0.0), _LONGEST)
