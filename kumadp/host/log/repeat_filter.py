"""Suppresses repeated log lines and counts them. Pure: times are parameters, in seconds of one clock."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

FIRST_WINDOW = 60.0
LONGEST_WINDOW = 600.0
# Lines of one kind that are admitted in its first window: a repeated event is news, a repeated fault is not.
_ADMITTED = {logging.INFO: 5, logging.WARNING: 1}
# Most kinds at a time; when there are more, the oldest is summarised and forgotten.
_MAX_KINDS = 500


class _Kind(Struct, Generic[T]):
    admissible: int
    start: float
    window: float
    count: int = 0
    last: T | None = None


class RepeatedLine(Struct, Generic[T], frozen=True):
    """``count`` lines like ``last`` were suppressed in ``seconds``."""

    last: T
    count: int
    seconds: float


class RepeatFilter(Generic[T]):
    """Suppresses and counts lines of a kind after its first ones, in windows of 60 s, then 120 s, ... 10 minutes."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind[T]] = {}
        self._due: float | None = None
        self.suppressed = 0
        """Total number of suppressed lines."""

    def admit(self, key: Hashable, level: int, line: T, now: float) -> bool:
        """Return whether to write this line; otherwise it is counted. Lines below INFO are always admitted."""
        if level < logging.INFO:
            return True
        kind = self._kinds.get(key)
        if kind is None:
            admissible = _ADMITTED[logging.WARNING if level >= logging.WARNING else logging.INFO]
            kind = self._kinds[key] = _Kind(admissible, now, FIRST_WINDOW)
            self._due = min(self._due or now + FIRST_WINDOW, now + FIRST_WINDOW)
        if kind.admissible > 0:
            kind.admissible -= 1
            return True
        kind.count, kind.last = kind.count + 1, line
        self.suppressed += 1
        return False

    def due(self) -> float | None:
        """Return when to call `summaries` next; None: not before another line is admitted."""
        return self._due

    def summaries(self, now: float, *, all_of_them: bool = False) -> list[RepeatedLine[T]]:
        """Return the lines suppressed in windows that have ended; a window with repeats is followed by a longer one.

        ``all_of_them``: end all windows now.
        """
        summaries: list[RepeatedLine[T]] = []
        excess = len(self._kinds) - _MAX_KINDS
        if not all_of_them and excess <= 0 and (self._due is None or now < self._due):
            return summaries
        for number, (key, kind) in enumerate(list(self._kinds.items())):
            forced = all_of_them or number < excess
            if not forced and now < kind.start + kind.window:
                continue
            if kind.last is not None:
                summaries.append(RepeatedLine(kind.last, kind.count, now - kind.start))
            if kind.last is None or forced:
                del self._kinds[key]
            else:
                self._kinds[key] = _Kind(0, now, min(kind.window * 2, LONGEST_WINDOW))
        self._due = min((kind.start + kind.window for kind in self._kinds.values()), default=None)
        return summaries
