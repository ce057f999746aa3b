"""Repeated lines: how a lasting fault is logged, by a test clock."""

from __future__ import annotations

import logging

from kumadp.host.log.repeat_filter import RepeatFilter


class Log:
    """Lines that were admitted, and a clock."""

    def __init__(self) -> None:
        self.repeats: RepeatFilter[str] = RepeatFilter()
        self.now = 0.0
        self.reported: list[str] = []

    def emit(self, text: str, level: int = logging.WARNING) -> None:
        if self.repeats.admit(text, level, text, self.now):
            self.reported.append(text)

    def pass_time(self, until: float) -> None:
        while (due := self.repeats.due()) is not None and due <= until:
            self.now = max(self.now, due)
            self.reported += [
                f"{one.last} x{one.count} in {one.seconds:.0f}" for one in self.repeats.summaries(self.now)
            ]
        self.now = until


def test_the_first_is_logged_at_once_and_the_rest_with_a_count() -> None:
    log = Log()
    for _ in range(7):
        log.emit("refused")
    assert log.reported == ["refused"]
    log.pass_time(60)
    assert log.reported == ["refused", "refused x6 in 60"]
    log.emit("refused")
    log.pass_time(180)
    assert log.reported[2:] == ["refused x1 in 120"]
    # A window without any ends it: the next one is news again.
    log.pass_time(1000)
    log.emit("refused")
    assert log.reported[3:] == ["refused"]
    assert log.repeats.suppressed == 7


def test_events_may_repeat_a_few_times_and_debugging_for_ever() -> None:
    log = Log()
    for _ in range(20):
        log.emit("READY -> STARTING", logging.INFO)
        log.emit("detail", logging.DEBUG)
    assert log.reported.count("READY -> STARTING") == 5
    assert log.reported.count("detail") == 20


def test_a_control_plane_that_is_away_for_ten_minutes() -> None:
    """Lines of kumadp, its relay, Envoy and CoreDNS, each more often than in reality."""
    log = Log()
    for tick in range(6000):
        log.pass_time(tick / 10)
        log.emit("no bootstrap from https://cp:5678: Connection refused")
        log.emit("no stream to the control plane at cp:5678: Connection refused; it is tried again")
        log.emit("StreamAggregatedResources gRPC config stream to ads closed: #, upstream connect error")
        log.emit("# backend.mesh. A: read udp #.#.#.#:#: i/o timeout", logging.ERROR)
        if tick % 300 == 0:
            log.emit("waiting: bootstrap: Connection refused", logging.INFO)
    log.pass_time(600)
    assert len(log.reported) < 50, log.reported
    assert log.repeats.suppressed > 20_000


def test_the_end_summarises_the_rest_and_memory_is_bounded() -> None:
    log = Log()
    for number in range(2000):
        log.emit(f"line {number}")
        log.emit(f"line {number}")
        log.reported += [one.last for one in log.repeats.summaries(log.now)]
    rest = log.repeats.summaries(log.now, all_of_them=True)
    assert len(rest) <= 500
    assert len(log.reported) + len(rest) == 4000
    assert log.repeats.due() is None
