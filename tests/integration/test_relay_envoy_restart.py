"""An Envoy that dies: the next one is served from memory, and the mesh sees nothing of it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.errors import ExitCode
from tests.support.control_planes import on_both_control_planes
from tests.support.daemon import get
from tests.support.http2 import Http2Server
from tests.support.poll import poll
from tests.support.rig import NODE, SOON, Rig
from tests.support.xds.journal import Event, Kind, What
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS, SECRET

if TYPE_CHECKING:
    from tests.support.xds.journal import Report, Request, Response

pytestmark = pytest.mark.process


@pytest.mark.contract("Envoy killed: the next one serves, the stream is kept, nothing is deregistered; mutual TLS too")
@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
@on_both_control_planes
def test_envoy_killed_again_and_again(rig: Rig, mtls: bool) -> None:
    if mtls:
        rig.plane.use_mtls()
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        if mtls:
            # Kuma 3.0 takes plain HTTP until the data plane has its identity.
            poll(lambda: get(rig.ports.inbound)[0] == 0, what="an inbound that takes TLS only", deadline=SOON)
            assert SECRET in rig.types(daemon)
        stream = poll(lambda: rig.plane.stream(NODE), what="the stream", deadline=SOON)
        for count in (1, 2, 3):
            rig.kill_envoy(daemon)
            assert rig.plane.registered == [NODE]
            status = rig.status(daemon)
            assert status["children"]["envoy"]["restarts"] == count
            assert "signal 9" in status["children"]["envoy"]["last_exit"]
            assert status["relay"]["state"] == "open"
            assert status["concerns"] == []
        assert rig.plane.stream(NODE) == stream
        assert rig.plane.rejected(NODE) == 0
        if isinstance(rig.plane, XdsControlPlane):
            journal = rig.plane.journal
            assert len(journal.events(What.OPENED)) == 1
            assert journal.events(What.DEREGISTERED) == []
            assert journal.requests(kind=Kind.STALE) == []


@on_both_control_planes
def test_changes_of_the_mesh_reach_the_next_envoy(rig: Rig) -> None:
    with rig.run() as daemon, Http2Server("other") as other:
        rig.wait_ready(daemon)
        rig.kill_envoy(daemon)
        without = {"port": other.port, "tags": {"kuma.io/service": "backend", "kuma.io/protocol": "http"}}
        place = {"address": "127.0.0.1", "inbound": [without]}
        rig.plane.put_dataplane({"type": "Dataplane", "mesh": "default", "name": "backend-02", "networking": place})
        poll(lambda: get(rig.ports.outbound) == (200, "other"), what="the other endpoint", deadline=SOON)


@pytest.mark.contract("what Envoy rejects is reported, and not sent to the next Envoy")
@on_both_control_planes
def test_a_response_that_envoy_rejects_is_not_what_the_next_one_starts_with(rig: Rig) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        good = rig.types(daemon)[CLUSTER]["accepted"]
        if isinstance(rig.plane, XdsControlPlane):
            rig.plane.faults.nack_delay = 0.1
        rig.plane.break_clusters("backend")
        poll(lambda: rig.plane.rejected(NODE), what="a rejection", deadline=SOON)
        rig.kill_envoy(daemon)
        # It has the good one before it is shown the other, of which it may now take a part.
        assert rig.stats(r"^cluster_manager.cds.update_success$")["cluster_manager.cds.update_success"] >= 1
        seen = rig.types(daemon)[CLUSTER]
        assert (seen["accepted"], seen["withheld"]) == (good, True)
        assert seen["rejected"] >= 1
        rig.plane.mend_clusters("backend")
        poll(lambda: rig.settled(daemon), what="the good clusters taken", deadline=SOON)
        # Delta has the digest of the content as version, which is the former one again.
        assert (rig.types(daemon)[CLUSTER]["accepted"] == good) is (rig.relay(daemon)["protocol"] == "delta")
        rig.kill_envoy(daemon)


def test_a_response_that_envoy_died_of_is_not_given_to_the_next_one(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon, Http2Server("other") as other, Http2Server("third") as third:
        rig.wait_ready(daemon)
        mesh = plane.mesh(NODE)
        good = rig.types(daemon)[ENDPOINTS]["accepted"]
        # It gets the response and does not come to answer it.
        daemon.envoy().send_signal(signal.SIGSTOP)
        mesh.endpoints["backend"] = [("127.0.0.1", other.port)]
        mesh.apply()
        newest = plane.version_of(NODE, ENDPOINTS)
        poll(lambda: rig.types(daemon)[ENDPOINTS]["latest"] == newest, what="the deadly response")
        rig.kill_envoy(daemon)
        seen = rig.types(daemon)[ENDPOINTS]
        assert (seen["accepted"], seen["latest"], seen["withheld"]) == (good, newest, True)
        assert f"Envoy ended before it answered version {newest}" in daemon.output()
        # One death is no proof: nothing is refused, and an Envoy that has lived for 30 s is given it again.
        mesh.endpoints["backend"] = [("127.0.0.1", third.port)]
        mesh.apply()
        poll(lambda: get(rig.ports.outbound) == (200, "third"), what="the next response", deadline=60)
        assert plane.journal.requests(kind=Kind.NACK) == []
        assert len(plane.journal.events(What.OPENED)) == 1


def test_envoy_killed_while_it_starts(rig: Rig, plane: XdsControlPlane) -> None:
    """Nothing was ever accepted, and the control plane is slow: the next Envoy waits for the same answers."""
    plane.faults.withheld = {CLUSTER}
    with rig.run() as daemon:
        for count in (1, 2):
            poll(lambda: rig.waits_for(daemon, "PRE_INITIALIZING"), what="an Envoy that waits for clusters")
            daemon.kill_envoy()
            poll(lambda: rig.restarts(daemon) == count, what="the next Envoy")  # noqa: B023 - called before the next
        plane.faults.withheld = set()
        plane.wake()
        rig.wait_ready(daemon)
        assert len(plane.journal.events(What.OPENED)) == 1


def test_while_a_restart_is_due_the_stream_is_held(rig: Rig, plane: XdsControlPlane) -> None:
    """As long as the waits between restarts grow: the longest is shorter than the stream is held without an Envoy."""
    with rig.run("--envoy-restart-budget=20") as daemon:
        rig.wait_ready(daemon)
        # From the ninth on they wait the longest time there is.
        for count in range(1, 11):
            daemon.kill_envoy()
            poll(lambda: rig.restarts(daemon) == count, what="the next death")  # noqa: B023 - called before it
            poll(lambda: "envoy" in daemon.children(), what="the next Envoy", deadline=SOON)
        rig.wait_ready(daemon)
        assert rig.status(daemon)["relay"]["state"] == "open"
        assert len(plane.journal.events(What.OPENED)) == 1
        assert plane.journal.events(What.DEREGISTERED) == []


class _Watch:
    """Whether Envoy ran when the stream at the control plane ended."""

    def __init__(self, plane: XdsControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
        self.envoy: psutil.Process | None = None
        self.ran_at_the_end: list[bool] = []
        self._add = plane.journal.add
        monkeypatch.setattr(plane.journal, "add", self.add)

    def add(self, entry: Request | Response | Event | Report) -> None:
        if isinstance(entry, Event) and entry.what is What.CLOSED and self.envoy is not None:
            self.ran_at_the_end.append(self._runs())
        self._add(entry)

    def _runs(self) -> bool:
        assert self.envoy is not None
        try:
            return self.envoy.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def test_a_stop_ends_the_stream_after_envoy(rig: Rig, plane: XdsControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = _Watch(plane, monkeypatch)
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        watch.envoy = daemon.envoy()
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        poll(lambda: watch.ran_at_the_end, what="the end of the stream")
        assert watch.ran_at_the_end == [False]
        assert not (rig.work / "relay.sock").exists()


@pytest.mark.parametrize("budget", [0, 1])
def test_giving_envoy_up_ends_the_stream(rig: Rig, plane: XdsControlPlane, budget: int) -> None:
    with rig.run(f"--envoy-restart-budget={budget}") as daemon:
        rig.wait_ready(daemon)
        for _ in range(budget):
            rig.kill_envoy(daemon)
        daemon.kill_envoy()
        assert daemon.wait() == ExitCode.CHILD_FAILED
        poll(lambda: plane.streams() == [], what="the end of the stream")
        assert len(plane.journal.events(What.OPENED)) == 1
