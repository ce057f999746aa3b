"""The control plane is unreachable, silent or rejects: Envoy keeps serving, the status reports it, and all recovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kumadp.errors import ExitCode
from tests.support.control_planes import on_both_control_planes
from tests.support.load_process import LoadProcess
from tests.support.poll import poll
from tests.support.rig import NODE, SOON, Rig
from tests.support.xds.journal import Kind, What
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process

MODIFIED = "cluster_manager.cluster_modified"


@pytest.mark.contract("control plane away: Envoy dies and is served from memory")
@on_both_control_planes
def test_envoy_dies_while_the_control_plane_is_gone(rig: Rig) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        rig.plane.kill()
        for _ in range(2):
            rig.kill_envoy(daemon)
        warning = rig.wait_warning(daemon, "control plane")
        status = rig.status(daemon)
        assert (status["relay"]["refusal"], status["relay"]["connected_since"]) == ("unreachable", None)
        assert status["relay"]["last_error"] in warning
        assert (status["ready"], status["reasons"]) == (True, [])
        before = rig.stats(f"^{MODIFIED}$")
        rig.plane.start()
        rig.renew_token()
        rig.wait_state(daemon, "open")
        poll(lambda: rig.plane.stream(NODE), what="the stream at the control plane", deadline=SOON)
        poll(lambda: rig.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
        poll(lambda: rig.settled(daemon), what="everything acknowledged again", deadline=SOON)
        assert rig.stats(f"^{MODIFIED}$") == before == {MODIFIED: 0}
        assert rig.status(daemon)["concerns"] == []
        assert rig.serves()
        rig.kill_envoy(daemon)


def test_keys_of_the_mesh_are_in_memory_while_the_control_plane_is_gone(rig: Rig, plane: XdsControlPlane) -> None:
    plane.use_mtls()
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.kill()
        rig.kill_envoy(daemon)
        assert SECRET in rig.types(daemon)
        before = rig.stats(f"^{MODIFIED}$")
        plane.start()
        rig.wait_state(daemon, "open")
        poll(lambda: rig.settled(daemon), what="everything acknowledged again")
        assert rig.stats(f"^{MODIFIED}$") == before
        first = [entry for entry in plane.journal.requests(kind=Kind.FIRST) if entry.stream == plane.streams()[-1]]
        assert {entry.type_url for entry in first} == {CLUSTER, ENDPOINTS, SECRET, LISTENER}
        assert all(entry.version for entry in first)


@pytest.mark.parametrize("how", ["goaway", "reset_streams", "end_streams", "drop_connections"])
def test_a_broken_stream_is_reopened_without_updates_to_envoy(rig: Rig, plane: XdsControlPlane, how: str) -> None:
    plane.faults.linger = 1.0
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        getattr(plane, how)()
        poll(lambda: len(plane.journal.events(What.ADMITTED)) == 2, what="another stream")
        poll(lambda: plane.registered == [NODE], what="the Dataplane in the mesh")
        poll(lambda: rig.settled(daemon), what="everything acknowledged again")
        assert rig.serves()
        assert len(plane.journal.events(What.DEREGISTERED)) == 1
        assert rig.restarts(daemon) == 0


def test_a_control_plane_that_never_answers(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.faults.linger, plane.faults.silent = 0.0, True
        plane.reset_streams()
        rig.wait_warning(daemon, "it leaves requests unanswered")
        relay = rig.relay(daemon)
        assert (relay["state"], relay["connected_since"]) == ("connecting", None)
        assert relay["silence"] > 0
        rig.kill_envoy(daemon)
        plane.faults.silent = False
        plane.wake()
        rig.wait_state(daemon, "open")
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
        assert rig.relay(daemon)["silence"] == 0


def test_a_control_plane_that_leaves_a_type_unanswered(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.faults.linger, plane.faults.withheld = 0.0, {LISTENER}
        plane.reset_streams()
        rig.wait_warning(daemon, "it leaves requests unanswered")
        assert rig.relay(daemon)["state"] == "open"
        assert "Listener" in daemon.output()
        plane.faults.withheld = set()
        plane.wake()
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")


def test_a_control_plane_that_reads_nothing(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.faults.linger = 0.0
        plane.deafen()
        plane.drop_connections()
        rig.wait_warning(daemon, "control plane")
        rig.kill_envoy(daemon)
        plane.deafen(False)
        rig.wait_state(daemon, "open")
        assert rig.serves()


def test_a_rejected_token_is_reported_and_the_next_one_used(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.faults.linger = 0.0
        good = plane.token() + "-new"
        plane.faults.refuse_token = lambda token: "" if token == good else "token is revoked"
        plane.reset_streams()
        rig.wait_warning(daemon, "token is revoked")
        relay = rig.relay(daemon)
        assert relay["refusal"] == "auth"
        assert relay["refused_since"] is not None
        rig.kill_envoy(daemon)
        assert rig.status(daemon)["ready"] is True
        rig.token.write_text(good)
        rig.wait_state(daemon, "open")
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
        assert rig.relay(daemon)["refusal"] is None
        assert good not in daemon.output()


def test_a_data_plane_that_is_refused_from_the_first_moment(rig: Rig, plane: XdsControlPlane) -> None:
    """The bootstrap arrived and the stream is rejected: kumadp waits with a reason, and a stop ends it cleanly."""
    plane.faults.refuse_token = lambda _token: "token is revoked"
    with rig.run() as daemon:
        rig.wait_warning(daemon, "token is revoked")
        assert rig.status(daemon)["ready"] is False
        plane.faults.refuse_token = lambda _token: ""
        daemon.wait_ready()
        assert rig.status(daemon)["concerns"] == []
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_a_stop_while_the_control_plane_is_gone(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.deafen()
        plane.drop_connections()
        poll(lambda: rig.relay(daemon)["state"] != "open", what="a broken stream")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def breaks(_at: Rig, plane: XdsControlPlane) -> None:
    plane.reset_streams()


def dies(rig: Rig, plane: XdsControlPlane) -> None:
    plane.kill()
    plane.put_dataplane(other(rig))
    plane.start()


def resends_everything(_at: Rig, plane: XdsControlPlane) -> None:
    plane.renew_versions(NODE)


@pytest.mark.parametrize("event", [breaks, dies, resends_everything])
def test_no_request_is_lost(
    tmp_path: Path, plane: XdsControlPlane, event: Callable[[Rig, XdsControlPlane], None]
) -> None:
    plane.use_mtls()
    plane.faults.linger = 0.5
    with LoadProcess() as app:
        rig = Rig(tmp_path, plane, app)
        # Endpoints of another data plane: a deregistered Dataplane has none, whatever kumadp does.
        rig.dataplane["networking"]["outbound"][0]["tags"]["kuma.io/service"] = "others"
        plane.put_dataplane(other(rig))
        with rig.run() as daemon:
            rig.wait_ready(daemon)
            watch = {"ready": (rig.ports.readiness, "/ready")}
            with app.on(rig.ports.outbound, rate=200, watch=watch) as report:
                before = plane.version_of(NODE, LISTENER)
                event(rig, plane)
                poll(lambda: plane.version_of(NODE, LISTENER) != before, what="new versions")
                rig.wait_state(daemon, "open")
                poll(lambda: rig.settled(daemon), what="everything acknowledged again")
                poll(lambda: plane.registered[:1] == [NODE], what="the Dataplane in the mesh")
            assert report.failures == {}
            assert report.answered > 0
            assert report.watched["ready"].keys() == {"200 READY"}
            assert rig.restarts(daemon) == 0


def other(rig: Rig) -> dict[str, Any]:
    """A Dataplane whose service is answered by our own inbound."""
    inbound = {**rig.dataplane["networking"]["inbound"][0], "tags": {"kuma.io/service": "others"}}
    place = {"address": "127.0.0.1", "inbound": [inbound]}
    return {"type": "Dataplane", "mesh": "default", "name": "others-01", "networking": place}
