"""What an input costs, counted and not timed: lines of Python that ran, and bytes that were allocated at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class TooLong(BaseException):
    """An input took more processor time than any may: it would not have ended. Not caught by a parser."""


class Lines:
    """Counts the lines that run, and collects where they are: an input that reaches new ones is worth mutating."""

    def __init__(self) -> None:
        self.seen: set[tuple[object, int]] = set()
        self.count = 0

    def run(self, call: Callable[[], object]) -> bool:
        """Call; ``count`` is the number of lines then. Returns whether a line ran that never ran before."""
        known = len(self.seen)
        self.count = 0
        previous = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            call()
        finally:
            sys.settrace(previous)
        return len(self.seen) > known

    def _on_call(self, _frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any]:
        self.count += 1
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            self.seen.add((frame.f_code, frame.f_lineno))
        return self._on_line


def allocated(call: Callable[[], object]) -> int:
    """Call, and return how many bytes Python had allocated for it at its peak."""
    if tracemalloc.is_tracing():
        raise RuntimeError("tracemalloc is on already")
    tracemalloc.start(1)
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[Callable[[], None]]:
    """Raise TooLong once this process has used so much processor time since the last call of what is yielded."""

    def over(_number: int, _frame: object) -> None:
        raise TooLong(f"more than {seconds:g} s of processor time")

    def begin() -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)

    previous = signal.signal(signal.SIGPROF, over)
    try:
        yield begin
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
