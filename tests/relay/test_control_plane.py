"""The test control plane with a real Envoy that connects to it directly: what the tests of the relay rely on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.support.daemon import Ports, Workload, get, workload
from tests.support.http2 import Http2Server
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.xds.envoy import DirectEnvoy, direct_envoy
from tests.support.xds.faults import Garbage
from tests.support.xds.journal import Kind, What
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

NODE = "default.backend-01"


class RelayStage:
    """A control plane, an application, and an Envoy whose outbound leads through the mesh to its own inbound."""

    def __init__(self, plane: XdsControlPlane, app: Workload, ports: Ports) -> None:
        self.plane, self.app, self.ports = plane, app, ports
        self.dataplane = dataplane("backend-01", "backend", ports, app.port, probes=False)

    def serves(self) -> bool:
        return get(self.ports.outbound) == (200, "backend")

    def wait_traffic(self, deadline: float = 30.0) -> None:
        poll(self.serves, what="traffic through the mesh", deadline=deadline)

    @contextlib.contextmanager
    def envoy(self, folder: Path) -> Iterator[DirectEnvoy]:
        with direct_envoy(folder, self.plane, self.dataplane, self.ports) as envoy:
            yield envoy


@contextlib.contextmanager
def stage(**options: Any) -> Iterator[RelayStage]:
    with workload("backend") as app, XdsControlPlane(**options) as plane:
        yield RelayStage(plane, app, Ports.take())


@pytest.mark.parametrize(
    "options",
    [
        {"version": "2.13.5"},
        {"version": "2.8.8", "two_ports": True},
        {"version": "2.13.5", "tls": False},
    ],
    ids=["2.13.5", "2.8.8 on two ports", "plain"],
)
def test_traffic_by_inbound_and_outbound(tmp_path: Path, options: dict[str, Any]) -> None:
    with stage(**options) as at, at.envoy(tmp_path):
        at.wait_traffic()
        assert get(at.ports.inbound) == (200, "backend")
        journal = at.plane.journal
        assert at.plane.registered == [NODE]
        # One type at a time, endpoints before listeners; the node in the first request only.
        first = [(entry.type_url, entry.has_node) for entry in journal.requests(kind=Kind.FIRST)]
        assert first == [(CLUSTER, True), (ENDPOINTS, False), (LISTENER, False)]
        assert [entry.nonce for entry in journal.responses()] == ["1", "2", "3"]
        for kind in (CLUSTER, ENDPOINTS, LISTENER):
            taken = poll(lambda kind=kind: journal.requests(kind, Kind.ACK), what="an ACK")  # type: ignore[misc]
            assert taken[-1].version == at.plane.version_of(NODE, kind)
        assert at.plane.bootstrap_requests[0]["dataplaneToken"] == at.plane.token()


def test_mutual_tls_by_sds(tmp_path: Path) -> None:
    authority = trustme.CA()
    with stage() as at:
        mesh = at.plane.mesh(NODE)
        mesh.use_mtls(authority, "web.mesh")
        mesh.inbound(at.ports.inbound, at.app.port)
        mesh.outbound(at.ports.outbound, "backend", ("127.0.0.1", at.ports.inbound))
        with at.envoy(tmp_path) as envoy:
            at.wait_traffic()
            assert get(at.ports.inbound)[0] == 0
            requested = at.plane.journal.requests(SECRET)
            assert len(requested[0].names) == 1
            assert at.plane.journal.events(What.UNANSWERED)[0].detail.startswith(SECRET)
            earlier = envoy.stats("listener.*ssl.handshake")
            assert sum(earlier.values()) > 0
            mesh.rotate("web.mesh")
            newest = at.plane.version_of(NODE, SECRET)
            poll(
                lambda: [e for e in at.plane.journal.requests(SECRET, Kind.ACK) if e.version == newest],
                what="the new certificate taken",
            )
            assert at.serves()


def test_endpoints_and_listeners_change_under_a_living_envoy(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path), Http2Server("other") as other:
        at.wait_traffic()
        mesh = at.plane.mesh(NODE)
        mesh.endpoints["backend"] = []
        mesh.add_endpoint("backend", "127.0.0.1", other.port)
        poll(lambda: get(at.ports.outbound) == (200, "other"), what="the new endpoint")
        mesh.remove_endpoint("backend", "127.0.0.1", other.port)
        poll(lambda: get(at.ports.outbound)[0] == 503, what="no endpoint")
        mesh.outbound(at.ports.probes, "other", ("127.0.0.1", other.port), http2=True)
        poll(lambda: get(at.ports.probes) == (200, "other"), what="a new listener and cluster")
        # Clusters changed: the endpoints that did not came again, in a new version.
        assert len({entry.version for entry in at.plane.journal.responses(ENDPOINTS)}) >= 4
        assert at.plane.journal.requests(kind=Kind.NACK) == []


def test_an_envoy_that_was_killed_is_refused_until_its_dataplane_is_gone(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path) as envoy:
        at.plane.faults.linger = 2.0
        at.wait_traffic()
        envoy.kill()
        envoy.start()
        journal = at.plane.journal
        poll(lambda: journal.events(What.REFUSED, node=NODE), what="a refused stream")
        assert at.plane.registered == [NODE]
        old = at.plane.version_of(NODE, CLUSTER)
        at.wait_traffic()
        closed, freed = journal.events(What.CLOSED, node=NODE)[0], journal.events(What.FREED)[0]
        gone = journal.events(What.DEREGISTERED)[0]
        assert closed.at + 2.0 <= gone.at <= freed.at <= journal.events(What.ADMITTED)[1].at
        assert gone.stream == closed.stream
        assert at.plane.version_of(NODE, CLUSTER) != old
        assert envoy.stats("cluster_manager.cds.update_rejected")["cluster_manager.cds.update_rejected"] == 0


def test_a_rejection_is_written_down_and_the_same_comes_again(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path):
        at.plane.faults.nack_delay = 0.3
        at.wait_traffic()
        journal, mesh = at.plane.journal, at.plane.mesh(NODE)
        good = at.plane.version_of(NODE, CLUSTER)
        mesh.break_cluster("backend")
        rejected = poll(lambda: journal.requests(CLUSTER, Kind.NACK), what="a NACK")[0]
        broken = at.plane.version_of(NODE, CLUSTER)
        assert (rejected.version, rejected.node) == (good, NODE)
        assert "ring" in rejected.error
        sent = [entry for entry in journal.responses(CLUSTER) if entry.version == broken]
        assert sent[0].nonce == rejected.nonce
        again = poll(
            lambda: [entry for entry in journal.responses(CLUSTER) if entry.version == broken][1:],
            what="the same version once more",
        )
        assert again[0].at >= rejected.at + 0.3
        assert at.serves()
        mesh.mend_cluster("backend")
        mended = at.plane.version_of(NODE, CLUSTER)
        poll(
            lambda: [entry for entry in journal.requests(CLUSTER, Kind.ACK) if entry.version == mended],
            what="the mended cluster taken",
        )
        assert at.serves()


def test_a_listener_on_a_taken_port_is_rejected(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path):
        at.wait_traffic()
        at.plane.mesh(NODE).break_listener(f"inbound:127.0.0.1:{at.ports.inbound}", at.app.port)
        rejected = poll(lambda: at.plane.journal.requests(LISTENER, Kind.NACK), what="a NACK")
        assert "Address already in use" in rejected[0].error or "cannot bind" in rejected[0].error


@pytest.mark.parametrize("garbage", Garbage)
def test_garbage_gives_an_envoy_nothing_to_serve(tmp_path: Path, garbage: Garbage) -> None:
    with stage() as at:
        at.plane.faults.garbage = garbage
        at.plane.faults.linger = at.plane.faults.nack_delay = 0.1
        with at.envoy(tmp_path):
            journal = at.plane.journal
            if garbage is Garbage.RESOURCE:
                poll(lambda: journal.requests(CLUSTER, Kind.NACK), what="a NACK")
            else:
                poll(lambda: journal.events(What.CLOSED), what="a broken stream")
            assert not at.serves()
            at.plane.faults.garbage = None
            at.wait_traffic()


def test_it_can_stay_silent(tmp_path: Path) -> None:
    with stage() as at:
        at.plane.faults.silent = True
        with at.envoy(tmp_path) as envoy:
            poll(lambda: at.plane.journal.requests(CLUSTER), what="a request")
            assert not envoy.live()
            assert at.plane.journal.responses() == []
            at.plane.faults.silent = False
            at.plane.faults.withheld.add(LISTENER)
            at.plane.wake()
            poll(lambda: at.plane.journal.requests(LISTENER), what="a request for listeners")
            assert not envoy.live()
            at.plane.faults.withheld.clear()
            at.plane.wake()
            at.wait_traffic()


def test_connections_that_are_accepted_and_not_read(tmp_path: Path) -> None:
    with stage(two_ports=True) as at, at.envoy(tmp_path):
        at.plane.faults.linger = 0.0
        at.wait_traffic()
        at.plane.deafen()
        requested, streams = at.plane.connections, at.plane.journal.events(What.OPENED)
        at.plane.drop_connections()
        poll(lambda: at.plane.connections > requested, what="a connection that is not read")
        assert at.plane.journal.events(What.OPENED) == streams
        at.plane.deafen(False)
        poll(lambda: at.plane.streams(NODE), what="a new stream")
        assert at.serves()


def test_a_refused_token(tmp_path: Path) -> None:
    with stage() as at:
        at.plane.faults.refuse_token = lambda token: "" if token == "rotated" else "could not parse token"
        with at.envoy(tmp_path):
            refused = poll(lambda: at.plane.journal.events(What.UNAUTHENTICATED), what="a refusal")
            assert refused[0].detail == "could not parse token"
            assert at.plane.registered == []
            at.plane.faults.refuse_token = lambda _token: ""
            at.wait_traffic()


def test_gone_and_back_on_the_same_port(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path) as envoy:
        at.wait_traffic()
        journal, version = at.plane.journal, at.plane.version_of(NODE, CLUSTER)
        at.plane.kill()
        poll(lambda: journal.events(What.CLOSED), what="the end of the stream")
        assert at.plane.registered == []
        assert at.serves()
        at.plane.start()
        poll(lambda: len(journal.events(What.REGISTERED)) == 2, what="a new registration")
        newest = at.plane.version_of(NODE, LISTENER)
        poll(lambda: journal.requests(LISTENER, Kind.ACK)[-1].version == newest, what="the new versions taken")
        # The content is the old one: Envoy changes nothing.
        assert journal.requests(CLUSTER, Kind.FIRST)[-1].version == version
        assert envoy.stats("cluster_manager.cluster_modified")["cluster_manager.cluster_modified"] == 0
        assert at.serves()


def test_streams_end_in_every_way(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path):
        at.plane.faults.linger = 0.0
        at.wait_traffic()
        for end in (at.plane.end_streams, at.plane.reset_streams, at.plane.drop_connections):
            (old,) = at.plane.streams(NODE)
            end()
            poll(lambda old=old: min(at.plane.streams(NODE), default=0) > old, what="another stream")  # type: ignore[misc]
        connections = at.plane.connections
        (old,) = at.plane.streams(NODE)
        at.plane.goaway()
        at.plane.renew_versions(NODE)
        newest = at.plane.version_of(NODE, CLUSTER)
        poll(
            lambda: [e for e in at.plane.journal.requests(CLUSTER, Kind.ACK, stream=old) if e.version == newest],
            what="an update after the GOAWAY on the stream of before",
        )
        at.plane.end_streams()
        poll(lambda: min(at.plane.streams(NODE), default=0) > old, what="another stream")
        assert at.plane.connections > connections


def test_health_is_checked_and_reported(tmp_path: Path) -> None:
    with stage() as at, at.envoy(tmp_path):
        at.wait_traffic()
        application = f"localhost:{at.app.port}"
        healthy = {"kuma:envoy:admin": True, application: True}
        poll(
            lambda: at.plane.journal.reports()[-1:] and at.plane.journal.reports()[-1].healthy == healthy, what="health"
        )
        at.app.close()
        poll(lambda: not at.plane.journal.reports()[-1].healthy[application], what="a sick application")
        assert at.plane.journal.reports()[-1].node == NODE
