"""Rate limit of log lines that repeat for as long as a fault lasts, with increasing intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

FIRST_WAIT = 30.0
LONGEST_WAIT = 1800.0


class Throttle:
    """Admits a line of a kind, then the next of that kind after 30 s, 60 s, ... half an hour.

    Times (``now``) are in seconds of one clock.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def admit(self, kind: str, now: float) -> int | None:
        """Return None if this line is to be left out, else how many of its kind were left out before it."""
        due, wait, left_out = self._kinds.get(kind, (now, FIRST_WAIT, 0))
        if now < due:
            self._kinds[kind] = (due, wait, left_out + 1)
            return None
        self._kinds[kind] = (now + wait, min(wait * 2, LONGEST_WAIT), 0)
        return left_out

    def warn(self, logger: logging.Logger, kind: str, now: float, text: str) -> None:
        """Log ``text`` as a warning, if admitted, with the number of lines of its kind that were left out before."""
        left_out = self.admit(kind, now)
        if left_out is not None:
            logger.warning("%s%s", text, f" ({left_out} more like this were left out)" if left_out else "")

    def reset(self, kind: str | None = None) -> None:
        """Forget a kind, or all: the fault is over, and the next line is admitted at once."""
        if kind is None:
            self._kinds.clear()
        else:
            self._kinds.pop(kind, None)
