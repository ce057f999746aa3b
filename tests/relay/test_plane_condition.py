"""The condition of a control plane that does not serve us, and when its refusal is permanent."""

from __future__ import annotations

import pytest

from kumadp.core.grace_period import ESTABLISHED_GRACE_PERIOD, GRACE_PERIOD
from kumadp.relay.plane_condition import SILENT, UNREACHABLE_AFTER, PlaneCondition, assess
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.unanswered import SILENCE
from kumadp.relay.upstream import UpstreamFacts, UpstreamState

WELL = PlaneCondition()
NOW = 10_000.0


def facts(
    state: UpstreamState, refusal: StreamRefusal | None = None, error: str = "", refused_for: float | None = None
) -> UpstreamFacts:
    since = None if refused_for is None else NOW - refused_for
    return UpstreamFacts(state=state, last_error=error, refusal=refusal, refused_since=since)


@pytest.mark.parametrize(
    ("reported", "silence", "expected"),
    [
        (facts(UpstreamState.OPEN), 0.0, WELL),
        (facts(UpstreamState.OPEN), SILENCE - 0.1, WELL),
        (facts(UpstreamState.OPEN), SILENCE, PlaneCondition(SILENT)),
        # The error of a previous stream does not describe one that is open and silent.
        (
            facts(UpstreamState.CONNECTING, StreamRefusal.UNREACHABLE, "reset", 6.0),
            UNREACHABLE_AFTER,
            PlaneCondition(SILENT),
        ),
        (facts(UpstreamState.CONNECTING), 0.0, PlaneCondition("it does not answer")),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.UNREACHABLE, "Connection refused", 9000.0),
            0.0,
            PlaneCondition("Connection refused"),
        ),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.ACTIVE, "an active stream", 9000.0),
            0.0,
            PlaneCondition("an active stream"),
        ),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.OTHER, "no such mesh", 9000.0),
            0.0,
            PlaneCondition("no such mesh"),
        ),
        # Closed by ourselves: no fault of the control plane.
        (facts(UpstreamState.HELD_CLOSED, StreamRefusal.AUTH, "revoked", 9000.0), 0.0, WELL),
    ],
)
def test_only_a_refused_token_is_permanent_and_each_condition_has_its_warning(
    reported: UpstreamFacts, silence: float, expected: PlaneCondition
) -> None:
    for was_connected in (False, True):
        assert assess(reported, silence=silence, was_connected=was_connected, now=NOW) == expected


@pytest.mark.parametrize(("was_connected", "grace_period"), [(False, GRACE_PERIOD), (True, ESTABLISHED_GRACE_PERIOD)])
@pytest.mark.parametrize("state", [UpstreamState.BACKOFF, UpstreamState.CONNECTING])
def test_a_refused_token_is_permanent_once_the_grace_period_is_over(
    state: UpstreamState, was_connected: bool, grace_period: float
) -> None:
    before = facts(state, StreamRefusal.AUTH, "token is revoked", grace_period - 0.1)
    assert assess(before, silence=0.0, was_connected=was_connected, now=NOW) == PlaneCondition("token is revoked")
    after = facts(state, StreamRefusal.AUTH, "token is revoked", grace_period)
    condition = assess(after, silence=0.0, was_connected=was_connected, now=NOW)
    assert condition.permanent
    assert "token is revoked" in condition.warning
