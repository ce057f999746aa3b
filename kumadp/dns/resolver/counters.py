"""Counters of the embedded resolver since it started; `kumadp.metrics.dns` exposes them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from msgspec import Struct, field

# Upper bounds of the histogram buckets, in seconds: the defaults of Prometheus' client libraries, as kuma-dp has them.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _buckets() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


class Counters(Struct):
    """``fast_a`` and ``fast_aaaa``: plain answers from the table, all NOERROR, which no other counter includes."""

    fast_a: int = 0
    fast_aaaa: int = 0
    fast_seconds: float = 0.0
    """Time spent on reading and answering, of all queries by UDP."""
    slow_bursts: list[int] = field(default_factory=_buckets)
    """Bursts of queries that took longer than the first of `BOUNDS`, by duration: one query of each had to wait."""
    local: Counter[int] = field(default_factory=Counter)
    """Other answers that were not forwarded, by the type of the query."""
    upstream: Counter[int] = field(default_factory=Counter)
    """Queries to forward, by type."""
    codes: Counter[int] = field(default_factory=Counter)
    """Answers, our own and forwarded ones, by code."""
    forwarded: int = 0
    """Queries sent to other servers, of which `failed` had no usable answer."""
    failed: int = 0
    forward_seconds: float = 0.0
    """Time that all of those took."""
    forward_durations: list[int] = field(default_factory=_buckets)
    """Those that have ended, by duration."""
    refused: int = 0
    """Queries not forwarded because too many were pending."""
    loops: int = 0
    """Our own queries that came back to us."""
    dropped: int = 0
    """Packets that are not queries, and answers that could not be sent."""
    ready_after: float | None = None
    """Time until the first names arrived (seconds); None until then."""

    def note_forwarded(self, seconds: float) -> None:
        """Record the end of a forwarded query."""
        self.forward_seconds += seconds
        self.forward_durations[bisect_left(BOUNDS, seconds)] += 1

    def note_slow(self, seconds: float) -> None:
        """Record a burst that took longer than the first of `BOUNDS`."""
        self.slow_bursts[bisect_left(BOUNDS, seconds)] += 1

    @property
    def queries(self) -> int:
        """All queries that were answered."""
        return self.fast_a + self.fast_aaaa + self.codes.total()
