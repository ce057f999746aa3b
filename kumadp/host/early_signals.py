"""Signals that arrive before the run loop has its handlers: by default each of them would end the process.

An Envoy of a killed kumadp may serve, so a stop is kept for the run loop, which drains it. In a process that was
re-executed, signals are blocked until the loop takes them (`kumadp.host.reexec.handover`), and no action is set here,
since an ignored signal would be lost (sigaction(2)). As PID 1 of a container the default action is none at all
(pid_namespaces(7)), and a stop would be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType

LIMIT = 3.0
"""Seconds until a stop ends the process where the loop is not reached, e.g. settings are read from a silent pipe."""
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Settings are about to be read, the program is new, and nothing serves that could drain.
_MEANINGLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_before: dict[signal.Signals, Any] = {}
_came: list[signal.Signals] = []


def hold_early_signals() -> None:
    """A stop is kept for `early_stops`, a second one ends the process; signals that ask for work are ignored."""
    for number in (*_STOPS, *_MEANINGLESS):
        _before[number] = signal.signal(number, _stop if number in _STOPS else signal.SIG_IGN)


def restore_signal_handlers() -> None:
    """What there was before `hold_early_signals`, for a command that is not `run`."""
    while _before:
        signal.signal(*_before.popitem())


def early_stops() -> list[signal.Signals]:
    """The stop that came, if any, for the run loop, which has handlers of its own now."""
    found = _came.copy()
    if found:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _came.clear()
    return found


def _stop(number: int, _frame: FrameType | None) -> None:
    if _came:
        _end(number, None)
    _came.append(signal.Signals(number))
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    # Not through sys.stderr: it may be in the middle of a line.
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {_came[0].name} before anything was started\n".encode())
    # Nothing is raised: a callback of the garbage collector or of `importlib` may run, where it would be dropped.
    os._exit(0)
