"""Signals that arrive before the run loop has installed its handlers: by default each of them would end the process.

An Envoy that a killed kumadp left may be serving, so a stop signal is held for the run loop, which drains it. In a
re-executed process, signals are blocked until the loop handles them (`kumadp.host.reexec.handover`), and no handler is
set here, since an ignored signal would be lost (sigaction(2)). PID 1 of a container has no default action at all
(pid_namespaces(7)), and a stop signal would be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType

LIMIT = 3.0
"""Seconds until a stop ends the process if the loop is not reached, e.g. while settings are read from a silent pipe."""
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Settings are read soon anyway, the program is new, and there is nothing to drain.
_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_previous_handlers: dict[signal.Signals, Any] = {}
_received: list[signal.Signals] = []


def hold_early_signals() -> None:
    """Hold a stop signal for `early_stops`; a second one ends the process. Ignore signals that request an action."""
    for number in (*_STOPS, *_IGNORED):
        _previous_handlers[number] = signal.signal(number, _stop if number in _STOPS else signal.SIG_IGN)


def restore_signal_handlers() -> None:
    """Undo `hold_early_signals`, for a command that is not `run`."""
    while _previous_handlers:
        signal.signal(*_previous_handlers.popitem())


def early_stops() -> list[signal.Signals]:
    """Return the stop signal that was received, if any, for the run loop, which has installed its handlers now."""
    stops = _received.copy()
    if stops:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _received.clear()
    return stops


def _stop(number: int, _frame: FrameType | None) -> None:
    if _received:
        _end(number, None)
    _received.append(signal.Signals(number))
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    # Not through sys.stderr: it may be in the middle of a line.
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {_received[0].name} before anything was started\n".encode())
    # Nothing is raised: a callback of the garbage collector or of `importlib` may run, which would drop it.
    os._exit(0)
