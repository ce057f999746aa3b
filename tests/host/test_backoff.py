"""Waits between retries: growth, cap, jitter, reset."""

from __future__ import annotations

import pytest

from kumadp.host.backoff import Backoff


def test_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(3.0, 30.0)
    assert [backoff.grow() for _ in range(6)] == [3.0, 6.0, 12.0, 24.0, 30.0, 30.0]


def test_another_growth() -> None:
    backoff = Backoff(1.0, 3.0, growth=1.5)
    assert [backoff.grow() for _ in range(4)] == [1.0, 1.5, 2.25, 3.0]


def test_a_first_wait_beyond_the_cap_is_the_cap() -> None:
    backoff = Backoff(7.0, 5.0, keep=1.0)
    assert [backoff.wait(), backoff.wait()] == [5.0, 5.0]


def test_a_first_wait_of_zero_stays_zero() -> None:
    backoff = Backoff(0.0, 30.0)
    assert [backoff.wait() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_it_never_overflows() -> None:
    backoff = Backoff(1e300, 1e308, growth=1e300)
    assert [backoff.grow() for _ in range(3)] == [1e300, 1e308, 1e308]


@pytest.mark.parametrize(("keep", "least"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_jitter_leaves_at_least_its_part_of_each_wait(keep: float, least: float) -> None:
    drawn = []
    for _ in range(300):
        backoff = Backoff(3.0, 30.0, keep=keep)
        drawn.append([backoff.wait() for _ in range(5)])
    for waits, longest in zip(zip(*drawn, strict=True), (3.0, 6.0, 12.0, 24.0, 30.0), strict=True):
        assert least * longest <= min(waits) <= (least + 0.25) * longest
        assert 0.75 * longest < max(waits) <= longest


def test_waits_at_the_cap_have_their_own_part() -> None:
    lowest = Backoff(3.0, 10.0, keep=0.0, keep_at_cap=0.5, uniform=lambda low, _high: low)
    assert [lowest.wait() for _ in range(4)] == [0.0, 0.0, 5.0, 5.0]


def test_jitter_does_not_change_how_waits_grow() -> None:
    backoff = Backoff(1.0, 100.0, uniform=lambda low, _high: low)
    assert [backoff.wait() for _ in range(3)] == [0.5, 1.0, 2.0]


def test_after_a_reset_the_first_wait_comes_again() -> None:
    backoff = Backoff(1.0, 10.0)
    waits = [backoff.grow(), backoff.grow()]
    backoff.reset()
    assert [*waits, backoff.grow(), backoff.grow()] == [1.0, 2.0, 1.0, 2.0]
