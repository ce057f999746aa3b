"""A control plane that rejects permanently ends kumadp with the reason, or is only reported. Short grace periods."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support import short_grace_period
from tests.support.poll import poll
from tests.support.rig import SOON
from tests.support.scripted_control_plane import Answer
from tests.support.xds.journal import What

if TYPE_CHECKING:
    from tests.support.rig import Rig
    from tests.support.xds.plane import XdsControlPlane

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

SHORT_GRACE_PERIOD = (sys.executable, str(Path(short_grace_period.__file__)), "0.5", "1.0")
NEVER_WITH_A_FRIEND = (*SHORT_GRACE_PERIOD[:2], "0.5", "3600")
UNWELCOME = "the Dataplane is not welcome"
REASON = "the control plane rejects this data plane: authentication failed: token is revoked"


def test_a_data_plane_that_is_never_admitted_exits(rig: Rig, plane: XdsControlPlane) -> None:
    plane.faults.refuse_token = lambda _token: "token is revoked"
    with rig.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert REASON in daemon.output().splitlines()[-1]
        assert plane.journal.events(What.ADMITTED) == []


def test_a_data_plane_that_is_no_longer_admitted_exits(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        rig.wait_ready(daemon)
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.reset_streams()
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert REASON in daemon.output().splitlines()[-1]


def test_a_rejected_data_plane_may_keep_serving_with_one_log_line(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run("--on-control-plane-refusal=serve", prefix=SHORT_GRACE_PERIOD) as daemon:
        rig.wait_ready(daemon)
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.reset_streams()
        rig.wait_warning(daemon, REASON)
        seen = len(plane.journal.events(What.UNAUTHENTICATED))
        poll(lambda: len(plane.journal.events(What.UNAUTHENTICATED)) > seen + 2, what="further attempts")
        rig.kill_envoy(daemon)
        assert rig.status(daemon)["concerns"] == [f"control plane: {REASON}"]
        assert daemon.output().count(REASON) == 1
        plane.faults.refuse_token = lambda _token: ""
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
        rig.wait_state(daemon, "open")
        assert rig.serves()


def test_an_unreachable_control_plane_never_ends_kumadp(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        rig.wait_ready(daemon)
        connections = plane.connections
        plane.deafen()
        plane.drop_connections()
        # The handshakes that nobody answers run into their time limit.
        poll(lambda: plane.connections > connections + 1, what="further attempts", deadline=60)
        assert rig.serves()
        plane.deafen(False)
        rig.wait_state(daemon, "open")


def serve_once(rig: Rig) -> None:
    """Run until all is accepted, and stop: the disk has it then."""
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_a_control_plane_that_served_the_previous_run_is_a_friend(rig: Rig, plane: XdsControlPlane) -> None:
    serve_once(rig)
    plane.kill()
    with rig.run(prefix=NEVER_WITH_A_FRIEND) as daemon:
        daemon.wait_ready()
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.start()
        rig.wait_warning(daemon, "token is revoked")
        since = rig.relay(daemon)["refused_since"]
        poll(lambda: time.time() - since > 1.0, what="the end of the grace period")
        seen = len(plane.journal.events(What.UNAUTHENTICATED))
        poll(lambda: len(plane.journal.events(What.UNAUTHENTICATED)) > seen, what="another attempt")
        assert daemon.process.poll() is None
        assert rig.serves()


@pytest.mark.parametrize("mode", ["exit", "serve"])
def test_a_bootstrap_rejected_after_a_start_without_the_control_plane(
    rig: Rig, plane: XdsControlPlane, mode: str
) -> None:
    serve_once(rig)
    plane.kill()
    with rig.run(f"--on-control-plane-refusal={mode}", prefix=SHORT_GRACE_PERIOD) as daemon:
        daemon.wait_ready()
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.answers = [Answer(422, UNWELCOME.encode()) for _ in range(100)]
        plane.start()
        if mode == "exit":
            assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
            return
        # The first request goes on, and the relay queries before each stream: one condition, one warning.
        rig.wait_warning(daemon, f"bootstrap: the control plane at {plane.url} refused: HTTP 422: {UNWELCOME}")
        remaining = len(plane.answers)
        poll(lambda: len(plane.answers) < remaining - 2, what="further attempts")
        assert rig.serves()
        assert daemon.output().count(UNWELCOME) == 1
        assert sum(UNWELCOME in concern for concern in rig.status(daemon)["concerns"]) == 1


def test_a_start_that_is_rejected_serves_what_was_accepted_before(rig: Rig, plane: XdsControlPlane) -> None:
    """All was killed, and the control plane is of a version that does not accept this Dataplane."""
    serve_once(rig)
    plane.answers = [Answer(422, UNWELCOME.encode()) for _ in range(100)]
    with rig.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        daemon.wait_ready()
        rig.wait_traffic()
        rig.wait_warning(daemon, f"HTTP 422: {UNWELCOME}")
        rig.kill_envoy(daemon)
        assert rig.waits_for(daemon, "bootstrap") is False
        plane.answers.clear()
        poll(lambda: "stale_since" not in rig.status(daemon), what="a bootstrap of now", deadline=SOON)
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        assert rig.serves()
