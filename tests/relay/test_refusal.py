"""What a refusal is, and how long the relay waits after it."""

from __future__ import annotations

import itertools
import random
import ssl

import pytest

from kumadp.errors import ControlPlaneRefused
from kumadp.grpc.call import StreamEnded
from kumadp.host.log.throttle import Throttle
from kumadp.relay.refusal import PROMPT_FOR, StreamBackoff, StreamRefusal, classify

ACTIVE = "there is already an active stream from this node, try again later"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StreamEnded(2, ACTIVE), StreamRefusal.ACTIVE),
        (
            StreamEnded(2, "authentication failed: could not parse token. kuma-cp runs with an in-memory"),
            StreamRefusal.AUTH,
        ),
        (
            StreamEnded(2, "could not extract credential from DiscoveryRequest: request has no metadata"),
            StreamRefusal.AUTH,
        ),
        (StreamEnded(16, "who are you"), StreamRefusal.AUTH),
        (StreamEnded(7, "not you"), StreamRefusal.AUTH),
        (ssl.SSLCertVerificationError("no"), StreamRefusal.AUTH),
        (ControlPlaneRefused("the token file is empty"), StreamRefusal.AUTH),
        (ConnectionRefusedError(111, "refused"), StreamRefusal.UNREACHABLE),
        (TimeoutError(), StreamRefusal.UNREACHABLE),
        (ssl.SSLError("eof"), StreamRefusal.UNREACHABLE),
        (StreamEnded(None, "Connection lost"), StreamRefusal.UNREACHABLE),
        (StreamEnded(14, "going away"), StreamRefusal.UNREACHABLE),
        (
            StreamEnded(2, 'resource "default.web" not found; create a Dataplane in Kuma'),
            StreamRefusal.DATAPLANE,
        ),
        (StreamEnded(2, 'unsupported proxy type "ingress", only "dataplane" is supported'), StreamRefusal.DATAPLANE),
        (StreamEnded(2, "request must have a valid Proxy ID: name is empty"), StreamRefusal.DATAPLANE),
        (StreamEnded(12, "unknown method"), StreamRefusal.OTHER),
        (StreamEnded(0, ""), StreamRefusal.OTHER),
    ],
)
def test_each_failure_has_its_kind(error: Exception, kind: StreamRefusal) -> None:
    assert classify(error) is kind


def attempts(backoff: StreamBackoff, refusal: StreamRefusal, broken: float | None, until: float) -> list[float]:
    """Times of the attempts until ``until`` seconds after the first, which is at 0."""
    now, times = 0.0, []
    while now <= until:
        times.append(now)
        now += backoff.wait(refusal, None if broken is None else now - broken, now)
    return times


def test_a_stream_that_is_still_held_is_requested_when_it_is_freed() -> None:
    times = attempts(StreamBackoff(), StreamRefusal.ACTIVE, 0.0, 20.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[:4] == pytest.approx([0.25, 0.375, 0.5625, 0.84375])
    assert max(gaps) <= 1.0
    near = [time for time in times if 9.5 <= time <= 11.0]
    assert near[0] == pytest.approx(9.5)
    assert all(gap <= 0.1 + 1e-9 for gap, time in zip(gaps, times, strict=False) if 9.5 <= time < 10.9)
    assert gaps[-1] == pytest.approx(1.0)


def test_a_stream_of_a_previous_run_is_requested_each_second() -> None:
    gaps = attempts(StreamBackoff(), StreamRefusal.ACTIVE, None, 20.0)
    assert max(later - earlier for earlier, later in itertools.pairwise(gaps)) <= 1.0


LONGEST = {StreamRefusal.UNREACHABLE: 1.5, StreamRefusal.AUTH: 5.0, StreamRefusal.OTHER: 5.0}


@pytest.mark.parametrize("refusal", LONGEST)
def test_others_wait_longer_up_to_a_limit_and_not_in_step(refusal: StreamRefusal) -> None:
    waits = [StreamBackoff(uniform=random.Random(seed).uniform).wait(refusal, 0.0, 0.0) for seed in range(50)]
    assert 0.1 < min(waits) < max(waits) <= 0.25
    backoff = StreamBackoff()
    late = [backoff.wait(refusal, 0.0, 0.0) for _ in range(30)][15:]
    assert LONGEST[refusal] / 2 <= min(late) < max(late) <= LONGEST[refusal]
    backoff.reset()
    assert backoff.wait(refusal, 0.0, 0.0) <= 0.25


@pytest.mark.parametrize("refusal", [StreamRefusal.UNREACHABLE, StreamRefusal.OTHER])
def test_after_a_long_outage_waits_are_as_long_as_the_time_since(refusal: StreamRefusal) -> None:
    backoff = StreamBackoff(uniform=lambda _low, high: high)
    short = LONGEST[refusal]
    for now in (0.0, *(float(second) for second in range(1, int(PROMPT_FOR + short) + 1))):
        assert backoff.wait(refusal, now, now) <= short
    assert [backoff.wait(refusal, 0.0, PROMPT_FOR + away) for away in (10.0, 25.0, 39.0, 300.0)] == [10, 25, 39, 40]
    backoff.reset()
    assert backoff.wait(refusal, 0.0, 1000.0) <= 0.25


def test_neither_a_rejected_token_nor_a_stream_that_is_still_held_waits_longer_after_a_long_outage() -> None:
    backoff = StreamBackoff()
    backoff.wait(StreamRefusal.UNREACHABLE, 0.0, 0.0)
    assert backoff.wait(StreamRefusal.AUTH, 0.0, 600.0) <= LONGEST[StreamRefusal.AUTH]
    assert backoff.wait(StreamRefusal.ACTIVE, 600.0, 600.0) <= 1.0


def test_ten_minutes_of_the_same_fault_are_a_handful_of_lines() -> None:
    throttle = Throttle()
    admitted = [
        suppressed for second in range(600) if (suppressed := throttle.admit("away", float(second))) is not None
    ]
    assert admitted == [0, 29, 59, 119, 239]


def test_a_fault_that_comes_back_is_logged_at_once() -> None:
    throttle = Throttle()
    assert throttle.admit("away", 0.0) == 0
    assert throttle.admit("away", 1.0) is None
    assert throttle.admit("other", 1.0) == 0
    throttle.reset()
    assert throttle.admit("away", 2.0) == 0
