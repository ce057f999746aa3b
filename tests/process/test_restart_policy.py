"""When a child is started again: the decision, pure."""

from __future__ import annotations

import pytest

from kumadp.process.restart_policy import GiveUp, RestartAfter, RestartPolicy, decide
from kumadp.relay.relay import HOLD

POLICY = RestartPolicy(budget=3, window=100.0, base=0.5, cap=1.5, stable=60.0)


@pytest.mark.parametrize(
    ("history", "now", "ran", "expected"),
    [
        ((), 10, 5, RestartAfter(0.0, (10,))),
        ((10,), 12, 1, RestartAfter(1.0, (10, 12))),
        ((10, 12), 14, 1, RestartAfter(1.5, (10, 12, 14))),
        ((10, 12, 14), 16, 1, GiveUp("restart budget spent (3 in 100 s)")),
        ((10, 12, 14), 111, 59, RestartAfter(1.5, (12, 14, 111))),
        ((10, 12, 14), 214, 59, RestartAfter(0.0, (214,))),
        ((10, 12, 14), 80, 60, RestartAfter(0.0, (80,))),
    ],
)
def test_a_budget_in_a_window_with_growing_waits_earned_back_by_a_stable_run(
    history: tuple[float, ...], now: float, ran: float, expected: RestartAfter | GiveUp
) -> None:
    assert decide(history, now, ran, POLICY) == expected


def test_budget_0_never_restarts() -> None:
    decision = decide((), 10, 3600, RestartPolicy(budget=0))
    assert isinstance(decision, GiveUp)
    assert "budget 0" in decision.reason


def test_no_wait_is_as_long_as_the_stream_is_held_without_an_envoy() -> None:
    # Two seconds are left for the start itself: the stream to the control plane is wanted again from then on.
    assert RestartPolicy(budget=1).cap + 2 <= HOLD


def test_waits_never_pass_the_cap() -> None:
    history: tuple[float, ...] = ()
    policy = RestartPolicy(budget=1000, window=1e9)
    for now in range(100):
        decision = decide(history, float(now), 0.1, policy)
        assert isinstance(decision, RestartAfter)
        assert decision.delay <= policy.cap
        history = decision.history
