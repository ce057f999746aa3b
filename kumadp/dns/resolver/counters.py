"""What the embedded resolver did since it started; plain numbers, told by others as metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

# Upper ends of what times are sorted into, in seconds: the usual ones of Prometheus' libraries, as kuma-dp has them.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _sorted() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


@dataclass(slots=True)
class Counters:
    """``quick_a`` and ``quick_aaaa``: plain answers from the table, all of them NOERROR, in no other figure here."""

    quick_a: int = 0
    quick_aaaa: int = 0
    quick_seconds: float = 0.0
    """What reading and answering took, of all queries by UDP."""
    slow: list[int] = field(default_factory=_sorted)
    """Bursts of queries that took longer than the first of `BOUNDS`, by what they took: one query of each waited."""
    local: Counter[int] = field(default_factory=Counter)
    """Other answers of our own, by the type that was asked for."""
    upstream: Counter[int] = field(default_factory=Counter)
    """Queries that others were asked for, by type."""
    codes: Counter[int] = field(default_factory=Counter)
    """Answers, ours and others', by code."""
    asked: int = 0
    """Questions to others, and `failed` of them without a usable answer."""
    failed: int = 0
    asked_seconds: float = 0.0
    """What all of those took."""
    took: list[int] = field(default_factory=_sorted)
    """Those that have ended, by what they took."""
    refused: int = 0
    """Not asked, as too much was under way."""
    loops: int = 0
    """Queries of our own that came back to us."""
    dropped: int = 0
    """What was no query, or an answer that could not be sent."""
    ready_after: float | None = None
    """How long the first names took to come (seconds); None until then."""

    def note_asked(self, seconds: float) -> None:
        """A question to others has ended."""
        self.asked_seconds += seconds
        self.took[bisect_left(BOUNDS, seconds)] += 1

    def note_slow(self, seconds: float) -> None:
        """A burst took longer than the first of `BOUNDS`."""
        self.slow[bisect_left(BOUNDS, seconds)] += 1

    @property
    def queries(self) -> int:
        """All that were answered."""
        return self.quick_a + self.quick_aaaa + self.codes.total()
