"""What is said of a control plane that does not serve us, and when a refusal is for good."""

from __future__ import annotations

import pytest

from kumadp.relay.grace_period import (
    ESTABLISHED_GRACE_PERIOD,
    GRACE_PERIOD,
    SILENT,
    UNREACHABLE_AFTER,
    ControlPlaneCondition,
    control_plane_condition,
)
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.relay import SILENCE
from kumadp.relay.upstream import UpstreamFacts, UpstreamState

WELL = ControlPlaneCondition()
NOW = 10_000.0


def facts(
    state: UpstreamState, refusal: StreamRefusal | None = None, error: str = "", refused_for: float | None = None
) -> UpstreamFacts:
    since = None if refused_for is None else NOW - refused_for
    return UpstreamFacts(state=state, last_error=error, refusal=refusal, refused_since=since)


@pytest.mark.parametrize(
    ("known", "silence", "verdict"),
    [
        (facts(UpstreamState.OPEN), 0.0, WELL),
        (facts(UpstreamState.OPEN), SILENCE - 0.1, WELL),
        (facts(UpstreamState.OPEN), SILENCE, ControlPlaneCondition(SILENT)),
        # What a stream ended with before says nothing of one that is open and silent.
        (
            facts(UpstreamState.CONNECTING, StreamRefusal.UNREACHABLE, "reset", 6.0),
            UNREACHABLE_AFTER,
            ControlPlaneCondition(SILENT),
        ),
        (facts(UpstreamState.CONNECTING), 0.0, ControlPlaneCondition("it does not answer")),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.UNREACHABLE, "Connection refused", 9000.0),
            0.0,
            ControlPlaneCondition("Connection refused"),
        ),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.ACTIVE, "an active stream", 9000.0),
            0.0,
            ControlPlaneCondition("an active stream"),
        ),
        (
            facts(UpstreamState.BACKOFF, StreamRefusal.OTHER, "no such mesh", 9000.0),
            0.0,
            ControlPlaneCondition("no such mesh"),
        ),
        # Closed by ourselves: nothing is to be said of the control plane.
        (facts(UpstreamState.HELD_CLOSED, StreamRefusal.AUTH, "revoked", 9000.0), 0.0, WELL),
    ],
)
def test_what_is_said_and_that_nothing_but_a_refused_token_is_for_good(
    known: UpstreamFacts, silence: float, verdict: ControlPlaneCondition
) -> None:
    for was_connected in (False, True):
        assert control_plane_condition(known, silence=silence, was_connected=was_connected, now=NOW) == verdict


@pytest.mark.parametrize(("had_us", "patience"), [(False, GRACE_PERIOD), (True, ESTABLISHED_GRACE_PERIOD)])
@pytest.mark.parametrize("state", [UpstreamState.BACKOFF, UpstreamState.CONNECTING])
def test_a_refused_token_is_for_good_when_patience_is_at_its_end(
    state: UpstreamState, was_connected: bool, patience: float
) -> None:
    before = facts(state, StreamRefusal.AUTH, "token is revoked", patience - 0.1)
    assert control_plane_condition(before, silence=0.0, was_connected=was_connected, now=NOW) == ControlPlaneCondition(
        "token is revoked"
    )
    after = facts(state, StreamRefusal.AUTH, "token is revoked", patience)
    told = control_plane_condition(after, silence=0.0, was_connected=was_connected, now=NOW)
    assert told.permanent
    assert "token is revoked" in told.warning
