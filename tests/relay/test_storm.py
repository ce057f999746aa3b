"""All sidecars lose the control plane at once: what it gets when it comes back, on a simulated clock."""

from __future__ import annotations

import pytest

from tests.support.storm import KumaDp, RunningKumadp, StartingKumadp, simulate

SIDECARS = 1000


@pytest.mark.parametrize("make", [RunningKumadp, StartingKumadp])
@pytest.mark.parametrize("capacity", [20.0, 1000.0], ids=["busy", "fast"])
def test_requests_after_a_long_outage_are_a_twentieth_of_those_of_kuma_dp(
    make: type[RunningKumadp | StartingKumadp], capacity: float
) -> None:
    peer = simulate(KumaDp, SIDECARS, outage=120.0, capacity=capacity)
    storm = simulate(make, SIDECARS, outage=120.0, capacity=capacity)
    assert storm.peak <= peer.peak / 20
    assert len(storm.served) == SIDECARS
    # Nobody waits longer than one more wait than a control plane of this capacity takes for all.
    assert storm.all_served <= SIDECARS / capacity + 50.0


@pytest.mark.parametrize("outage", [1.0, 5.0, 15.0, 30.0])
def test_after_a_restart_of_the_control_plane_all_are_back_within_two_seconds(outage: float) -> None:
    assert simulate(RunningKumadp, SIDECARS, outage=outage, capacity=1e6).all_served <= 2.0


def test_a_long_outage_is_not_lengthened_by_more_than_the_longest_wait() -> None:
    for outage in (45.0, 60.0, 300.0):
        storm = simulate(RunningKumadp, SIDECARS, outage=outage, capacity=1e6)
        assert storm.all_served <= min(outage - 28.0, 40.0)
