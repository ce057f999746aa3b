"""For how long the next Envoy may block while it comes up, by how the last one came up."""

from __future__ import annotations

import time

import pytest

from kumadp.envoy import start_time
from kumadp.envoy.start_time import StartTime

PID = 7


@pytest.mark.parametrize(
    ("took", "used", "blocks"),
    [
        (40.0, 5.0, 25.0),
        # It waited for the control plane, or was adopted and has run for long.
        (600.0, 0.3, 1.5),
        (0.1, 900.0, 0.1),
        (600.0, 100.0, 60.0),
        # It has ended.
        (40.0, None, 0.0),
    ],
)
def test_the_processor_time_of_a_busy_host_counts_up_to_the_time_it_took(
    monkeypatch: pytest.MonkeyPatch, took: float, used: float | None, blocks: float
) -> None:
    times = iter((100.0, 100.0 + took, 100.0 + took))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(start_time, "processor_time", lambda _pid: used)
    start = StartTime()
    start.began(PID)
    start.live(PID)
    assert start.blocks == pytest.approx(blocks)


def test_what_cannot_be_read_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_pid: int) -> float:
        raise OSError(24, "too many open files")

    start = StartTime()
    start.blocks = 12.0
    monkeypatch.setattr(start_time, "processor_time", cannot)
    start.began(PID)
    start.live(PID)
    assert start.blocks == 12.0
