"""What is said of a control plane that does not serve us, and when a refusal is for good."""

from __future__ import annotations

import pytest

from kumadp.relay.grace_period import AWAY, PATIENCE, PATIENCE_WITH_A_FRIEND, SILENT, Verdict, judge
from kumadp.relay.refusal import Refusal
from kumadp.relay.relay import SILENCE
from kumadp.relay.upstream import Facts, State

WELL = Verdict()
NOW = 10_000.0


def facts(state: State, refusal: Refusal | None = None, error: str = "", refused_for: float | None = None) -> Facts:
    since = None if refused_for is None else NOW - refused_for
    return Facts(state=state, last_error=error, refusal=refusal, refused_since=since)


@pytest.mark.parametrize(
    ("known", "silence", "verdict"),
    [
        (facts(State.OPEN), 0.0, WELL),
        (facts(State.OPEN), SILENCE - 0.1, WELL),
        (facts(State.OPEN), SILENCE, Verdict(SILENT)),
        # What a stream ended with before says nothing of one that is open and silent.
        (facts(State.CONNECTING, Refusal.UNREACHABLE, "reset", 6.0), AWAY, Verdict(SILENT)),
        (facts(State.CONNECTING), 0.0, Verdict("it does not answer")),
        (facts(State.BACKOFF, Refusal.UNREACHABLE, "Connection refused", 9000.0), 0.0, Verdict("Connection refused")),
        (facts(State.BACKOFF, Refusal.ACTIVE, "an active stream", 9000.0), 0.0, Verdict("an active stream")),
        (facts(State.BACKOFF, Refusal.OTHER, "no such mesh", 9000.0), 0.0, Verdict("no such mesh")),
        # Closed by ourselves: nothing is to be said of the control plane.
        (facts(State.HELD_CLOSED, Refusal.AUTH, "revoked", 9000.0), 0.0, WELL),
    ],
)
def test_what_is_said_and_that_nothing_but_a_refused_token_is_for_good(
    known: Facts, silence: float, verdict: Verdict
) -> None:
    for had_us in (False, True):
        assert judge(known, silence=silence, had_us=had_us, now=NOW) == verdict


@pytest.mark.parametrize(("had_us", "patience"), [(False, PATIENCE), (True, PATIENCE_WITH_A_FRIEND)])
@pytest.mark.parametrize("state", [State.BACKOFF, State.CONNECTING])
def test_a_refused_token_is_for_good_when_patience_is_at_its_end(state: State, had_us: bool, patience: float) -> None:
    before = facts(state, Refusal.AUTH, "token is revoked", patience - 0.1)
    assert judge(before, silence=0.0, had_us=had_us, now=NOW) == Verdict("token is revoked")
    after = facts(state, Refusal.AUTH, "token is revoked", patience)
    told = judge(after, silence=0.0, had_us=had_us, now=NOW)
    assert told.for_good
    assert "token is revoked" in told.concern
