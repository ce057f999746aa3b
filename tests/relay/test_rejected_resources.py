"""A resource that a real Envoy rejects costs only itself: what changes with it, and later, is applied."""

from __future__ import annotations

import contextlib
import copy
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import get, get_at
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds import resources
from tests.support.xds.journal import Kind
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.relay_stage import RunningRelay
    from tests.support.xds.mesh import Mesh

pytestmark = pytest.mark.process

GOOD, BAD, LATER = "good-service", "bad-service", "later-service"


@pytest.fixture(params=["2.13.5", "3.0"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayStage]:
    with stage(tmp_path, version=request.param) as opened:
        opened.plane.faults.nack_delay = 0.2
        yield opened


@contextlib.contextmanager
def one_change(mesh: Mesh) -> Iterator[None]:
    """Have all changes in the block reach the data plane as one."""
    apply, mesh.apply = mesh.apply, lambda: None
    yield
    mesh.apply = apply
    apply()


class Change:
    """Good outbounds beside a bad resource. ``taken`` is a port on which somebody listens."""

    def __init__(self, at: RelayStage, taken: int) -> None:
        self.at, self.taken = at, taken
        self.good, self.bad, self.later = free_ports(3)

    @property
    def mesh(self) -> Mesh:
        """What the data plane is served, once it has a Dataplane."""
        return self.at.plane.mesh(NODE)

    def add(self, service: str, port: int) -> None:
        self.mesh.outbound(port, service, ("127.0.0.1", self.at.app.port))

    def cluster(self) -> None:
        self.add(BAD, self.bad)
        self.mesh.break_cluster(BAD)

    def listener(self) -> None:
        self.add(BAD, self.bad)
        self.mesh.break_listener(self.listener_of(self.bad), self.taken)

    def route(self) -> None:
        self.add(BAD, self.bad)
        broken = copy.deepcopy(self.mesh.trees[LISTENER][self.listener_of(self.bad)])
        (route,) = broken["filterChains"][0]["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"][0]["routes"]
        route["match"] = {"safeRegex": {"regex": "(["}}
        self.mesh.put(LISTENER, broken)

    def endpoint(self) -> None:
        self.mesh.outbound(self.bad, BAD, ("no-address", 80))

    def secret(self) -> None:
        self.add(BAD, self.bad)
        cluster = self.mesh.trees[CLUSTER][BAD]
        tls = resources.mutual_tls("bad-identity", "bad-identity")
        del tls["validationContextSdsSecretConfig"]
        self.mesh.put(CLUSTER, resources.eds_cluster(cluster["name"], tls))
        self.mesh.put(SECRET, resources.identity_secret("bad-identity", "no certificate", "no key"))

    def listener_of(self, port: int) -> str:
        return next(name for name in self.mesh.trees[LISTENER] if name.endswith(f":{port}"))

    def remove(self) -> None:
        """Take everything bad away; a secret becomes a good one, since what needs it goes later."""
        if "bad-identity" in self.mesh.trees[SECRET]:
            issued = self.at.plane.authority.issue_cert("bad")
            chain, key = issued.cert_chain_pems[0].bytes().decode(), issued.private_key_pem.bytes().decode()
            self.mesh.put(SECRET, resources.identity_secret("bad-identity", chain, key))
            return
        with one_change(self.mesh):
            self.mesh.services.pop(BAD)
            for kind, names in self.mesh.trees.items():
                for name in [name for name in names if name in {BAD, f"outbound:127.0.0.1:{self.bad}"}]:
                    del self.mesh.trees[kind][name]


@pytest.fixture
def change(at: RelayStage) -> Iterator[Change]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield Change(at, taken.getsockname()[1])


KINDS: dict[str, tuple[Callable[[Change], None], str]] = {
    "cluster": (Change.cluster, CLUSTER),
    "listener": (Change.listener, LISTENER),
    "route": (Change.route, LISTENER),
    "endpoint": (Change.endpoint, ENDPOINTS),
    "secret": (Change.secret, SECRET),
}


def warming(at: RelayStage) -> int:
    _, text = get_at(at.envoys[-1].admin, "/stats?filter=cluster_manager.warming_clusters")
    return int(re.findall(r"warming_clusters: (\d+)", text)[0])


def settled(relay: RunningRelay) -> bool:
    status = relay.status
    return not status["withheld"] and all(
        view["accepted"] == view["latest"] and not view["open"] for view in status["types"] if view["latest"]
    )


def withheld(relay: RunningRelay) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = relay.status["withheld"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_with_a_bad_resource_and_later_is_applied(at: RelayStage, change: Change, kind: str) -> None:
    break_it, type_url = KINDS[kind]
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    poll(lambda: settled(relay), what="everything acknowledged")
    with one_change(change.mesh):
        change.add(GOOD, change.good)
        break_it(change)
    poll(lambda: get(change.good) == (200, "backend"), what="the good part of the change")
    poll(lambda: at.plane.journal.requests(type_url, Kind.NACK), what="the rejection at the control plane")
    (bad,) = poll(lambda: withheld(relay), what="the bad resource in the status")
    assert bad["type"] == type_url
    assert bool(bad["reason"]) is (type_url != SECRET)
    poll(lambda: warming(at) == 0, what="no cluster that warms")
    assert at.serves()
    change.add(LATER, change.later)
    poll(lambda: get(change.later) == (200, "backend"), what="a later change")
    poll(lambda: warming(at) == 0, what="no cluster that warms")
    assert withheld(relay) == [bad]
    change.remove()
    poll(lambda: settled(relay), what="everything acknowledged once the bad resource is gone")
    assert get(change.good) == (200, "backend")


@pytest.mark.parametrize("kind", ["cluster", "secret"])
def test_the_next_envoy_and_the_next_stream_get_the_same_verdict(at: RelayStage, change: Change, kind: str) -> None:
    """Only what is at rest: a response that an Envoy exited with is suspected, and then waits for 30 s."""
    break_it, type_url = KINDS[kind]
    at.plane.faults.linger = 0.2
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    with one_change(change.mesh):
        change.add(GOOD, change.good)
        break_it(change)
    poll(lambda: at.plane.journal.requests(type_url, Kind.NACK), what="the rejection at the control plane")
    poll(lambda: get(change.good) == (200, "backend"), what="the good part of the change")
    poll(lambda: withheld(relay) and not any(view["open"] for view in relay.status["types"]), what="all answered")
    poll(lambda: warming(at) == 0, what="no cluster that warms")
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    poll(lambda: get(change.good) == (200, "backend"), what="the good part, by the next Envoy")
    rejections = len(at.plane.journal.requests(type_url, Kind.NACK))
    at.plane.end_streams()
    poll(lambda: len(at.plane.journal.requests(type_url, Kind.NACK)) > rejections, what="the rejection on a new stream")
    assert len(withheld(relay)) == 1


def test_a_rejected_change_of_a_cluster_leaves_the_previous_one_and_warms_nothing(
    at: RelayStage, change: Change
) -> None:
    relay = at.relay()
    at.envoy(relay).wait_live()
    change.add(BAD, change.bad)
    poll(lambda: get(change.bad) == (200, "backend"), what="a good cluster")
    change.mesh.break_cluster(BAD)
    poll(lambda: withheld(relay), what="the bad resource in the status")
    poll(lambda: warming(at) == 0, what="no cluster that warms")
    assert get(change.bad) == (200, "backend")
    change.mesh.add_endpoint(BAD, "127.0.0.1", change.taken)
    change.add(GOOD, change.good)
    poll(lambda: get(change.good) == (200, "backend"), what="a later change")
    # An Envoy that starts now gets the previous one too.
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    poll(lambda: get(change.good) == (200, "backend"), what="traffic through the next Envoy")
    poll(lambda: warming(at) == 0, what="no cluster that warms")
    change.mesh.mend_cluster(BAD)
    poll(lambda: settled(relay), what="everything acknowledged")


def test_a_listener_whose_port_was_taken_is_given_to_the_next_envoy(at: RelayStage, change: Change) -> None:
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        change.add(GOOD, port)
        poll(lambda: withheld(relay), what="the listener in the status")
    assert at.serves()
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    poll(lambda: get(port) == (200, "backend"), what="traffic through the listener")
    poll(lambda: settled(relay), what="nothing withheld")
