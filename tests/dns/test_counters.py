from __future__ import annotations

from collections import Counter

from kumadp.dns.resolver.counters import BOUNDS, Counters


def test_durations_are_sorted_into_buckets() -> None:
    counters = Counters()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        counters.note_forwarded(seconds)
    assert counters.forward_durations == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]
    assert counters.forward_seconds == sum((BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1))
    counters.note_slow(0.3)
    assert counters.slow_bursts[BOUNDS.index(0.5)] == sum(counters.slow_bursts) == 1


def test_all_answers_are_queries() -> None:
    assert Counters(fast_a=2, fast_aaaa=3, codes=Counter({0: 4, 3: 1})).queries == 10
