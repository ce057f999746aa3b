"""When a child is started again: the decision, pure."""

from __future__ import annotations

import pytest

from kumadp.process.restart_policy import GiveUp, RestartAfter, RestartPolicy, Restarts, Run, decide
from kumadp.relay.relay import HOLD

POLICY = RestartPolicy(budget=3, window=100.0, base=0.5, cap=1.5, stable=60.0)


@pytest.mark.parametrize(
    ("times", "now", "ran", "expected"),
    [
        ((), 10, 5, RestartAfter(0.0, Restarts((10,), 1))),
        ((10,), 12, 1, RestartAfter(1.0, Restarts((10, 12), 2))),
        ((10, 12), 14, 1, RestartAfter(1.5, Restarts((10, 12, 14), 3))),
        ((10, 12, 14), 16, 1, GiveUp("restart budget spent (3 in 100 s)")),
        ((10, 12, 14), 111, 59, RestartAfter(1.5, Restarts((12, 14, 111), 3))),
        ((10, 12, 14), 214, 59, RestartAfter(0.0, Restarts((214,), 1))),
        ((10, 12, 14), 80, 60, RestartAfter(0.0, Restarts((80,), 1))),
    ],
)
def test_a_budget_in_a_window_with_growing_waits_earned_back_by_a_stable_run(
    times: tuple[float, ...], now: float, ran: float, expected: RestartAfter | GiveUp
) -> None:
    assert decide(Restarts(times, len(times)), now, Run(ran), POLICY) == expected


def test_one_that_did_its_job_is_restarted_at_once_until_the_budget_is_spent() -> None:
    restarts = Restarts()
    for now in (30.0, 60.0, 90.0):
        decision = decide(restarts, now, Run(29.0, 10.0), POLICY)
        assert isinstance(decision, RestartAfter)
        assert decision.delay == 0.0
        restarts = decision.restarts
    assert isinstance(decide(restarts, 109.0, Run(29.0, 10.0), POLICY), GiveUp)


def test_waits_count_only_those_that_ended_too_soon_one_after_the_other() -> None:
    policy = RestartPolicy(budget=100)
    restarts, delays = Restarts(), []
    for now, served in enumerate([1.0, 1.0, 1.0, 10.0, 9.9, 0.0]):
        decision = decide(restarts, float(now), Run(served, served), policy)
        assert isinstance(decision, RestartAfter)
        delays.append(decision.delay)
        restarts = decision.restarts
    assert delays == [0.0, 0.1, 0.2, 0.0, 0.0, 0.1]


def test_budget_0_never_restarts() -> None:
    decision = decide(Restarts(), 10, Run(3600, 3600), RestartPolicy(budget=0))
    assert isinstance(decision, GiveUp)
    assert "budget 0" in decision.reason


def test_no_wait_is_as_long_as_the_stream_is_held_without_an_envoy() -> None:
    # Two seconds are left for the start itself: the stream to the control plane is wanted again from then on.
    assert RestartPolicy(budget=1).cap + 2 <= HOLD


def test_waits_never_pass_the_cap() -> None:
    restarts = Restarts()
    policy = RestartPolicy(budget=1000, window=1e9)
    for now in range(100):
        decision = decide(restarts, float(now), Run(0.1), policy)
        assert isinstance(decision, RestartAfter)
        assert decision.delay <= policy.cap
        restarts = decision.restarts
