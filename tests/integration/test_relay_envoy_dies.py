"""An Envoy that dies: the next one is served from memory, and the mesh sees nothing of it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.errors import ExitCode
from tests.support.control_planes import KINDS
from tests.support.daemon import get
from tests.support.http2 import Http2Server
from tests.support.poll import poll
from tests.support.rig import NODE, SOON, Rig, rig
from tests.support.xds.journal import Event, Kind, What
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.xds.journal import Report, Request, Response

pytestmark = pytest.mark.process


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with rig(tmp_path, plane) as made:
        yield made


@pytest.mark.contract("Envoy killed: the next one serves, the stream is kept, nothing is deregistered; mutual TLS too")
@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_envoy_killed_again_and_again(at: Rig, mtls: bool) -> None:
    if mtls:
        at.plane.use_mtls()
    with at.run() as daemon:
        at.wait_ready(daemon)
        if mtls:
            assert get(at.ports.inbound)[0] == 0
            assert SECRET in at.types(daemon)
        stream = poll(lambda: at.plane.stream(NODE), what="the stream", deadline=SOON)
        for count in (1, 2, 3):
            at.kill_envoy(daemon)
            assert at.plane.registered == [NODE]
            status = at.status(daemon)
            assert status["children"]["envoy"]["restarts"] == count
            assert "signal 9" in status["children"]["envoy"]["last_exit"]
            assert status["relay"]["state"] == "open"
            assert status["concerns"] == []
        assert at.plane.stream(NODE) == stream
        assert at.plane.rejected(NODE) == 0
        if isinstance(at.plane, XdsControlPlane):
            journal = at.plane.journal
            assert len(journal.events(What.OPENED)) == 1
            assert journal.events(What.DEREGISTERED) == []
            assert journal.requests(kind=Kind.STALE) == []


def test_the_mesh_goes_on_changing_for_the_next_envoy(at: Rig) -> None:
    with at.run() as daemon, Http2Server("other") as other:
        at.wait_ready(daemon)
        at.kill_envoy(daemon)
        without = {"port": other.port, "tags": {"kuma.io/service": "backend", "kuma.io/protocol": "http"}}
        place = {"address": "127.0.0.1", "inbound": [without]}
        at.plane.put_dataplane({"type": "Dataplane", "mesh": "default", "name": "backend-02", "networking": place})
        poll(lambda: get(at.ports.outbound) == (200, "other"), what="the other endpoint", deadline=SOON)


@pytest.mark.contract("what Envoy rejects is told, and not given to the next one")
def test_a_response_that_envoy_rejects_is_not_what_the_next_one_starts_with(at: Rig) -> None:
    with at.run() as daemon:
        at.wait_ready(daemon)
        good = at.types(daemon)[CLUSTER]["accepted"]
        if isinstance(at.plane, XdsControlPlane):
            at.plane.faults.nack_delay = 0.1
        at.plane.break_clusters("backend")
        poll(lambda: at.plane.rejected(NODE), what="a rejection", deadline=SOON)
        at.kill_envoy(daemon)
        # It has the good one before it is shown the other, of which it may now take a part.
        assert at.stats(r"^cluster_manager.cds.update_success$")["cluster_manager.cds.update_success"] >= 1
        seen = at.types(daemon)[CLUSTER]
        assert (seen["accepted"], seen["withheld"]) == (good, True)
        assert seen["rejected"] >= 1
        at.plane.mend_clusters("backend")
        poll(lambda: at.settled(daemon), what="the good clusters taken", deadline=SOON)
        assert at.types(daemon)[CLUSTER]["accepted"] != good
        at.kill_envoy(daemon)


def test_a_response_that_envoy_died_of_is_not_given_to_the_next_one(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run() as daemon, Http2Server("other") as other, Http2Server("third") as third:
        alone.wait_ready(daemon)
        mesh = plane.mesh(NODE)
        good = alone.types(daemon)[ENDPOINTS]["accepted"]
        # It gets the response and does not come to answer it.
        daemon.envoy().send_signal(signal.SIGSTOP)
        mesh.endpoints["backend"] = [("127.0.0.1", other.port)]
        mesh.apply()
        newest = plane.version_of(NODE, ENDPOINTS)
        poll(lambda: alone.types(daemon)[ENDPOINTS]["latest"] == newest, what="the deadly response")
        alone.kill_envoy(daemon)
        seen = alone.types(daemon)[ENDPOINTS]
        assert (seen["accepted"], seen["latest"], seen["withheld"]) == (good, newest, True)
        assert f"Envoy ended before it answered version {newest}" in daemon.output()
        # One death is no proof: nothing is refused, and an Envoy that has lived for 30 s is given it again.
        mesh.endpoints["backend"] = [("127.0.0.1", third.port)]
        mesh.apply()
        poll(lambda: get(alone.ports.outbound) == (200, "third"), what="the next response", deadline=60)
        assert plane.journal.requests(kind=Kind.NACK) == []
        assert len(plane.journal.events(What.OPENED)) == 1


def test_envoy_killed_while_it_starts(alone: Rig, plane: XdsControlPlane) -> None:
    """Nothing was ever accepted, and the control plane is slow: the next Envoy waits for the same answers."""
    plane.faults.withheld = {CLUSTER}
    with alone.run() as daemon:
        for count in (1, 2):
            poll(lambda: alone.waits_for(daemon, "PRE_INITIALIZING"), what="an Envoy that waits for clusters")
            daemon.kill_envoy()
            poll(lambda: alone.restarts(daemon) == count, what="another Envoy")  # noqa: B023 - asked before the next
        plane.faults.withheld = set()
        plane.wake()
        alone.wait_ready(daemon)
        assert len(plane.journal.events(What.OPENED)) == 1


def test_while_a_restart_is_due_the_stream_is_held(alone: Rig, plane: XdsControlPlane) -> None:
    """As long as the waits between restarts grow: the longest is shorter than the stream is held without an Envoy."""
    with alone.run("--envoy-restart-budget=20") as daemon:
        alone.wait_ready(daemon)
        # From the ninth on they wait the longest time there is.
        for count in range(1, 11):
            daemon.kill_envoy()
            poll(lambda: alone.restarts(daemon) == count, what="the next death")  # noqa: B023 - asked before it
            poll(lambda: "envoy" in daemon.children(), what="another Envoy", deadline=SOON)
        alone.wait_ready(daemon)
        assert alone.status(daemon)["relay"]["state"] == "open"
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


def test_a_stop_ends_the_stream_after_envoy(
    alone: Rig, plane: XdsControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = _Watch(plane, monkeypatch)
    with alone.run() as daemon:
        alone.wait_ready(daemon)
        watch.envoy = daemon.envoy()
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        poll(lambda: watch.ran_at_the_end, what="the end of the stream")
        assert watch.ran_at_the_end == [False]
        assert not (alone.work / "relay.sock").exists()


@pytest.mark.parametrize("budget", [0, 1])
def test_giving_envoy_up_ends_the_stream(alone: Rig, plane: XdsControlPlane, budget: int) -> None:
    with alone.run(f"--envoy-restart-budget={budget}") as daemon:
        alone.wait_ready(daemon)
        for _ in range(budget):
            alone.kill_envoy(daemon)
        daemon.kill_envoy()
        assert daemon.wait() == ExitCode.CHILD_FAILED
        poll(lambda: plane.streams() == [], what="the end of the stream")
        assert len(plane.journal.events(What.OPENED)) == 1
