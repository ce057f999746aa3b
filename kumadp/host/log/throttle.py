"""Log lines that repeat for as long as a fault lasts, told ever more rarely. Pure."""

from __future__ import annotations

FIRST_WAIT = 30.0
LONGEST_WAIT = 1800.0


class Sparse:
    """Lets a line of a kind through, then the next of that kind after 30 s, 60 s, ... half an hour."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def count(self, kind: str, now: float) -> int | None:
        """None where the line is to be left out; else how many of its kind were left out before it."""
        due, wait, left_out = self._kinds.get(kind, (now, FIRST_WAIT, 0))
        if now < due:
            self._kinds[kind] = (due, wait, left_out + 1)
            return None
        self._kinds[kind] = (now + wait, min(wait * 2, LONGEST_WAIT), 0)
        return left_out

    def reset(self, kind: str | None = None) -> None:
        """The fault is over: the next line of this kind, or of each, is told at once."""
        if kind is None:
            self._kinds.clear()
        else:
            self._kinds.pop(kind, None)
