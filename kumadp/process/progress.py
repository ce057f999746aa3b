"""Deadlines that follow the progress of a process, not the clock. The rule is pure; `ProgressWatch` applies it.

A process that starts needs as long as there is work for it on a host as busy as this one is. What it uses of the
processor shows whether it moves: on a host with twenty times as much work as it can do, one that works still gets more
than `BUSY`, while one that waits, and answers requests about its state, uses a tenth of that.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.host.descriptors import is_gone
from kumadp.host.process_identity import stat_fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Counts = Callable[[float], Awaitable[Mapping[str, int]]]

_TICKS = os.sysconf("SC_CLK_TCK")
# The share of one processor, since the last progress, from which on a process moves.
BUSY = 0.02
# A process that always moves is given up after this many times its deadline.
LONGEST_TIMES = 40
# Parts of the deadline: from one look to the next, and after which what it waits for is counted too.
_LOOKS, _QUIET = 10, 3
_LONGEST_PAUSE = 1.0
# So many seconds from one look to the next show that kumadp was stopped.
_UNSEEN = 3.0
_LONGEST_QUERY = 2.0


def main_thread_ticks(pid: int) -> int | None:
    """Return CPU time of the main thread in clock ticks (proc_pid_stat(5): utime and stime), None if it has ended.

    Raises OSError if it cannot be read: too many open files mean nothing for the process.
    """
    try:
        fields = stat_fields(Path(f"/proc/{pid}/task/{pid}/stat").read_bytes())
    except OSError as error:
        if is_gone(error):
            return None
        raise
    return int(fields[11]) + int(fields[12])


def processor_time(pid: int) -> float | None:
    """Return the processor time of the main thread in seconds, as `main_thread_ticks`."""
    ticks = main_thread_ticks(pid)
    return ticks / _TICKS if ticks is not None else None


def used_or(pid: int, otherwise: float) -> float:
    """Return the processor time of the main thread in seconds, ``otherwise`` if it cannot be read."""
    try:
        used = processor_time(pid)
    except OSError:
        return otherwise
    return used if used is not None else otherwise


class Progress(Struct):
    """The rule: overdue after ``idle`` seconds without progress, and after `LONGEST_TIMES` times that in any case.

    Progress is that the main thread uses at least `BUSY` of a processor, or that a count changes. ``now`` is any clock
    in seconds, ``cpu`` the processor time of the main thread in seconds. Time in which nobody looked does not count:
    kumadp may have been stopped, and the process with it.
    """

    idle: float
    now: float
    cpu: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    _began: float = 0.0
    _since: float = 0.0
    _base: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._since = self.now
        self._base = self.cpu

    @property
    def longest(self) -> float:
        """Seconds after which it is overdue in any case."""
        return self.idle * LONGEST_TIMES

    @property
    def remaining(self) -> float:
        """Seconds until it is overdue if nothing moves."""
        return self._since + self.idle - self.now

    @property
    def is_quiet(self) -> bool:
        """True if it has not moved for a while, so that what it waits for should be counted."""
        return self.now - self._since >= self.idle / _QUIET

    def note(self, now: float, cpu: float) -> bool:
        """Note the processor time; return whether there was progress."""
        unseen = now - self.now
        if unseen > max(self.idle / _QUIET, _UNSEEN):
            self._began += unseen
            self._since += unseen
        self.now, self.cpu = now, cpu
        used = cpu - self._base
        return self._moved() if used > 0 and used >= BUSY * (now - self._since) else False

    def note_counts(self, now: float, cpu: float, counts: Mapping[str, int]) -> bool:
        """Note what it waits for; return whether that was progress. Processor time since `note` went into counting."""
        self._base += cpu - self.cpu
        self.now, self.cpu = now, cpu
        changed = bool(self.counts) and bool(counts) and counts != self.counts
        self.counts = counts or self.counts
        return self._moved() if changed else False

    def _moved(self) -> bool:
        self._since, self._base = self.now, self.cpu
        return True

    @property
    def overdue(self) -> str:
        """Why it is overdue; "" if it is not."""
        counted = "".join(f", {number} {what}" for what, number in self.counts.items() if number)
        if self.now - self._since >= self.idle:
            return f"no progress for {self.idle:g} s: CPU {self.cpu - self._base:.1f} s{counted}"
        if self.now - self._began >= self.longest:
            return f"no end within {self.longest:g} s, though it moves: CPU {self.cpu:.1f} s{counted}"
        return ""


async def _nothing(_timeout: float) -> Mapping[str, int]:
    return {}


def _ignore() -> None:
    pass


class ProgressWatch(Struct, frozen=True):
    """Watches one process until it is overdue, by `Progress` with ``idle`` seconds.

    ``counts`` returns what the process waits for, by words for it, within the seconds that it is given; empty if that
    is not known. ``on_progress`` is called at each progress.
    """

    idle: float
    counts: Counts = _nothing
    on_progress: Callable[[], None] = _ignore

    async def overdue(self, pid: int) -> str:
        """Return why the process is overdue, once it is. One that has ended makes no progress."""
        loop = asyncio.get_running_loop()
        progress = Progress(self.idle, loop.time(), used_or(pid, 0.0))
        pause = min(self.idle / _LOOKS, _LONGEST_PAUSE)
        next_count = loop.time() + self.idle / _QUIET
        while not (reason := progress.overdue):
            await asyncio.sleep(pause)
            moved = progress.note(loop.time(), used_or(pid, progress.cpu))
            if progress.is_quiet and progress.remaining > 0 and loop.time() >= next_count:
                counts = await self.counts(min(progress.remaining, _LONGEST_QUERY))
                moved |= progress.note_counts(loop.time(), used_or(pid, progress.cpu), counts)
                next_count = loop.time() + self.idle / _QUIET / 2
            if moved:
                self.on_progress()
        return reason
