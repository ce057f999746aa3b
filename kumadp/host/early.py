"""Signals that arrive before the run loop has its handlers: by default each of them would end the process.

Nothing serves yet at that time, unless this process was re-executed: then they are blocked until the loop takes them
(`kumadp.host.handover`), and no action is set here, since one that is ignored would be lost (sigaction(2)). As PID 1
of a container the default action is none at all (pid_namespaces(7)), and a stop would be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType

_STOPS = (signal.SIGTERM, signal.SIGQUIT)
# Settings are about to be read, the program is new, and nothing serves that could drain.
_MEANINGLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_before: dict[signal.Signals, Any] = {}


def take_early_signals() -> None:
    """A stop ends the process with exit code 0, the signals that ask for work are ignored; until the loop runs."""
    for number in (*_STOPS, *_MEANINGLESS):
        _before[number] = signal.signal(number, _stop if number in _STOPS else signal.SIG_IGN)


def leave_early_signals() -> None:
    """What there was before `take_early_signals`, for a command that is not `run`."""
    while _before:
        signal.signal(*_before.popitem())


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # Not through sys.stderr: it may be in the middle of a line.
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name} before anything was started\n".encode())
    # Nothing is raised: a callback of the garbage collector or of `importlib` may run, where it would be dropped.
    os._exit(0)
