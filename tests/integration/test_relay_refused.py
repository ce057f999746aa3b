"""A control plane that refuses for good: it ends the program with the reason, or is only told. With short patience."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support import short_grace_period
from tests.support.poll import poll
from tests.support.rig import Rig, rig
from tests.support.scripted_control_plane import Answer
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

SHORT_GRACE_PERIOD = (sys.executable, str(Path(short_grace_period.__file__)), "0.5", "1.0")
NEVER_WITH_A_FRIEND = (*SHORT_GRACE_PERIOD[:2], "0.5", "3600")
REASON = "the control plane refuses this data plane: authentication failed: token is revoked"


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        made.faults.linger = 0.0
        yield made


@pytest.fixture
def alone(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with rig(tmp_path, plane) as made:
        yield made


def test_a_data_plane_that_is_never_taken_ends(alone: Rig, plane: XdsControlPlane) -> None:
    plane.faults.refuse_token = lambda _token: "token is revoked"
    with alone.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert REASON in daemon.output().splitlines()[-1]
        assert plane.journal.events(What.ADMITTED) == []


def test_a_data_plane_that_is_taken_no_more_ends(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        alone.wait_ready(daemon)
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.reset_streams()
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert REASON in daemon.output().splitlines()[-1]


def test_or_serves_on_and_says_so_once(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run("--on-control-plane-refusal=serve", prefix=SHORT_GRACE_PERIOD) as daemon:
        alone.wait_ready(daemon)
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.reset_streams()
        alone.wait_concern(daemon, REASON)
        seen = len(plane.journal.events(What.UNAUTHENTICATED))
        poll(lambda: len(plane.journal.events(What.UNAUTHENTICATED)) > seen + 2, what="further attempts")
        alone.kill_envoy(daemon)
        assert alone.status(daemon)["concerns"] == [f"control plane: {REASON}"]
        assert daemon.output().count(REASON) == 1
        plane.faults.refuse_token = lambda _token: ""
        poll(lambda: alone.status(daemon)["concerns"] == [], what="no concern any more")
        alone.wait_state(daemon, "open")
        assert alone.serves()


def test_a_control_plane_that_is_only_gone_never_ends_it(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run(prefix=SHORT_GRACE_PERIOD) as daemon:
        alone.wait_ready(daemon)
        connections = plane.connections
        plane.deafen()
        plane.drop_connections()
        # The handshakes that nobody answers run into their time limit.
        poll(lambda: plane.connections > connections + 1, what="further attempts", deadline=60)
        assert alone.serves()
        plane.deafen(False)
        alone.wait_state(daemon, "open")


def serve_once(at: Rig) -> None:
    """Run until all is accepted, and stop: the disk has it then."""
    with at.run() as daemon:
        at.wait_ready(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_one_that_had_us_before_a_start_without_it_is_a_friend(alone: Rig, plane: XdsControlPlane) -> None:
    serve_once(alone)
    plane.kill()
    with alone.run(prefix=NEVER_WITH_A_FRIEND) as daemon:
        daemon.wait_ready()
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.start()
        alone.wait_concern(daemon, "token is revoked")
        since = alone.relay(daemon)["refused_since"]
        poll(lambda: time.time() - since > 1.0, what="the end of patience with a stranger")
        seen = len(plane.journal.events(What.UNAUTHENTICATED))
        poll(lambda: len(plane.journal.events(What.UNAUTHENTICATED)) > seen, what="another attempt")
        assert daemon.process.poll() is None
        assert alone.serves()


@pytest.mark.parametrize("mode", ["exit", "serve"])
def test_a_bootstrap_refused_for_good_after_a_start_without_the_control_plane(
    alone: Rig, plane: XdsControlPlane, mode: str
) -> None:
    serve_once(alone)
    plane.kill()
    with alone.run(f"--on-control-plane-refusal={mode}", prefix=SHORT_GRACE_PERIOD) as daemon:
        daemon.wait_ready()
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.answers = [Answer(422, b"the Dataplane is not welcome") for _ in range(100)]
        plane.start()
        if mode == "exit":
            assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
            return
        alone.wait_concern(daemon, "the Dataplane is not welcome")
        poll(lambda: len(plane.answers) < 98, what="further attempts")
        assert alone.serves()
        assert daemon.output().count("the Dataplane is not welcome") == 1
