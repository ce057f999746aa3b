"""Growth is seen through noise, and noise is not taken for growth."""

from __future__ import annotations

import os
import random
import socket

import pytest

from tests.soak.samples import DAY, growth_per_day, measure, rise

HOUR = range(0, 3600, 5)


@pytest.mark.parametrize("each_day", [0.0, 24.0, -12.0])
def test_growth_is_seen_through_noise_and_outliers(each_day: float) -> None:
    noise = random.Random(7)
    points = [(float(at), 40 + each_day * at / DAY + noise.gauss(0, 0.1)) for at in HOUR]
    points[100] = (points[100][0], 400.0)
    assert growth_per_day(points) == pytest.approx(each_day, abs=2.0)
    assert rise(points) == pytest.approx(each_day * 2 / 3 / 24, abs=0.1)


def test_a_leak_of_one_descriptor_a_minute_is_seen() -> None:
    points = [(float(at), 30.0 + at // 60) for at in HOUR]
    assert rise(points) == 40
    assert growth_per_day(points) == pytest.approx(1440, rel=0.05)


def test_few_samples_have_no_growth() -> None:
    assert growth_per_day([(0.0, 1.0)]) == 0.0
    assert rise([(0.0, 1.0), (1.0, 9.0)]) == 0.0


def test_what_a_process_uses() -> None:
    before = measure(os.getpid())
    with socket.socket():
        after = measure(os.getpid())
    assert after["sockets"] == before["sockets"] + 1
    assert after["descriptors"] == before["descriptors"] + 1
    assert before["threads"] >= 1
    assert 1 < before["memory"] < 10_000
