"""Lines that repeat as long as a fault lasts are logged at increasing intervals, with the number left out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kumadp.host.log.throttle import Throttle

if TYPE_CHECKING:
    import pytest

log = logging.getLogger("kumadp.test")


def test_the_interval_doubles_up_to_half_an_hour() -> None:
    throttle = Throttle()
    times = [second for second in range(20_000) if throttle.admit("away", float(second)) is not None]
    assert times[:4] == [0, 30, 90, 210]
    assert [later - earlier for earlier, later in zip(times[-3:], times[-2:], strict=False)] == [1800, 1800]


def test_a_line_has_the_number_of_those_that_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    throttle = Throttle()
    for second in range(31):
        throttle.warn(log, "away", float(second), f"no stream: attempt {second}")
    throttle.warn(log, "other", 31.0, "another fault")
    assert caplog.messages == [
        "no stream: attempt 0",
        "no stream: attempt 30 (29 more like this were left out)",
        "another fault",
    ]


def test_a_reset_admits_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    throttle = Throttle()
    for kind in ("one", "two", "one", "two"):
        throttle.warn(log, kind, 0.0, kind)
    throttle.reset("one")
    throttle.warn(log, "one", 1.0, "one")
    throttle.warn(log, "two", 1.0, "two")
    throttle.reset()
    throttle.warn(log, "two", 2.0, "two")
    assert caplog.messages == ["one", "two", "one", "two"]
