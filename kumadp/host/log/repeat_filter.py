"""Repeated log lines told with a count. Pure: times are given, in seconds of one clock."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

FIRST_WINDOW = 60.0
LONGEST_WINDOW = 600.0
# What is told one by one in a window: an event that repeats is news, a fault that repeats is not.
_FREE = {logging.INFO: 5, logging.WARNING: 1}
# More kinds of lines than this at a time are not kept apart: the oldest is told and forgotten.
_MOST = 500


@dataclass(slots=True)
class _Kind(Generic[T]):
    free: int
    began: float
    window: float
    count: int = 0
    last: T | None = None


@dataclass(frozen=True, slots=True)
class RepeatedLine(Generic[T]):
    """``count`` lines like ``last`` were left out in ``seconds``."""

    last: T
    count: int
    seconds: float


class RepeatFilter(Generic[T]):
    """Leaves out lines of a kind that has had its share, for 60 s, then 120 s, ... 10 minutes, and counts them."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind[T]] = {}
        self._due: float | None = None
        self.total = 0
        """How many were left out so far."""

    def passes(self, kind: Hashable, level: int, line: T, now: float) -> bool:
        """Whether this one is to be told; else it is counted. Lines below INFO always pass."""
        if level < logging.INFO:
            return True
        known = self._kinds.get(kind)
        if known is None:
            free = _FREE[logging.WARNING if level >= logging.WARNING else logging.INFO]
            known = self._kinds[kind] = _Kind(free, now, FIRST_WINDOW)
            self._due = min(self._due or now + FIRST_WINDOW, now + FIRST_WINDOW)
        if known.free > 0:
            known.free -= 1
            return True
        known.count, known.last = known.count + 1, line
        self.total += 1
        return False

    def due(self) -> float | None:
        """When `over` has something to do; None: not before another line comes."""
        return self._due

    def over(self, now: float, *, all_of_them: bool = False) -> list[RepeatedLine[T]]:
        """What was left out in windows that are over: one that had repeats is followed by a longer one."""
        told: list[RepeatedLine[T]] = []
        crowd = len(self._kinds) - _MOST
        if not all_of_them and crowd <= 0 and (self._due is None or now < self._due):
            return told
        for number, (name, kind) in enumerate(list(self._kinds.items())):
            forced = all_of_them or number < crowd
            if not forced and now < kind.began + kind.window:
                continue
            if kind.last is not None:
                told.append(RepeatedLine(kind.last, kind.count, now - kind.began))
            if kind.last is None or forced:
                del self._kinds[name]
            else:
                self._kinds[name] = _Kind(0, now, min(kind.window * 2, LONGEST_WINDOW))
        self._due = min((kind.began + kind.window for kind in self._kinds.values()), default=None)
        return told
