"""Delta with a real Envoy: memory across forms of xDS and relays, two epochs, secrets and health."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import uvloop

from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.last_good import FILE
from kumadp.relay.messages import Response
from kumadp.relay.protobuf import fields
from tests.relay.test_delta_memory import earlier_memory
from tests.support.daemon import get
from tests.support.http2 import Http2Server
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, RunningRelay, stage
from tests.support.xds.journal import Kind, What
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kumadp.relay.snapshot import RelaySnapshot

pytestmark = pytest.mark.process

VERSIONS = ["2.13", "3.0"]
MESH = (CLUSTER, ENDPOINTS, LISTENER)


@pytest.fixture(params=VERSIONS)
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayStage]:
    with stage(tmp_path, uvloop.new_event_loop, version=request.param) as made:
        made.plane.faults.linger = 0.0
        yield made


def begin(at: RelayStage, protocol: XdsProtocol = XdsProtocol.DELTA, **machine: Any) -> RunningRelay:
    """A relay that speaks delta, whatever the bootstrap names: 2.13 and 2.14 serve both."""
    relay = RunningRelay(at.path, at.bootstrap, at.plane, at.make_loop, protocol=protocol, **machine)
    at.relays.append(relay)
    return relay


def serving(at: RelayStage, relay: RunningRelay) -> None:
    """Wait until an Envoy serves, and the control plane knows that it has accepted all."""
    at.envoy(relay).wait_live()
    at.wait_traffic()
    relay.wait_accepted(*MESH)
    settled(at)


def settled(at: RelayStage) -> None:
    journal = at.plane.journal

    def answered() -> bool:
        newest = max(event.stream for event in journal.events(What.OPENED))
        sent = {entry.nonce for entry in journal.responses() if entry.stream == newest}
        return sent == {entry.nonce for entry in journal.requests() if entry.stream == newest and entry.nonce}

    poll(answered, what="all responses answered")


def versions_in(memory: RelaySnapshot, type_url: str) -> set[str]:
    """The versions of what Envoy accepted, as Kuma computes them."""
    (raw,) = [saved.accepted for saved in memory.types if saved.type_url == type_url]
    return {
        hashlib.sha256(resource[start:end]).hexdigest()
        for resource in Response.parse(raw or b"").resources
        for number, start, end in fields(resource)
        if number == 2
    }


def test_traffic_over_one_stream_of_delta(at: RelayStage) -> None:
    relay = begin(at)
    serving(at, relay)
    journal = at.plane.journal
    assert len(journal.events(What.OPENED)) == 1
    assert journal.requests(kind=Kind.NACK) == []
    assert all(entry.delta and entry.has_node for entry in journal.requests())
    assert relay.status["protocol"] == "delta"
    assert relay.status["silence"] == 0.0
    seen = len(journal.requests())
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    # All from memory.
    assert (len(journal.requests()), len(journal.events(What.OPENED))) == (seen, 1)
    assert at.plane.registered == [NODE]


def test_memory_that_was_handed_over_begins_the_next_stream(at: RelayStage) -> None:
    relay = begin(at)
    serving(at, relay)
    memory = at.stop(relay)
    poll(lambda: at.plane.streams() == [], what="the end of the stream at the control plane")
    again = begin(at, snapshot=memory)
    at.envoys[0].belongs_to(again)
    poll(lambda: again.status["state"] == "open", what="the stream again")
    stream = at.plane.journal.events(What.OPENED)[-1].stream
    first = next(entry for entry in at.plane.journal.requests(CLUSTER, Kind.FIRST) if entry.stream == stream)
    assert set(first.initial.values()) == versions_in(memory, CLUSTER)
    assert at.serves()


@pytest.mark.parametrize("at", ["2.14"], indirect=True)
def test_memory_of_one_form_serves_the_other(at: RelayStage) -> None:
    """As at an upgrade: versions follow from the bytes, and Envoy gets nothing that it has."""
    before: set[str] = set()
    modified: dict[str, int] = {}
    memory: RelaySnapshot | None = None
    for protocol in (XdsProtocol.SOTW, XdsProtocol.DELTA, XdsProtocol.SOTW):
        relay = begin(at, protocol, snapshot=memory)
        if memory is None:
            serving(at, relay)
            modified = at.envoys[0].stats("cluster_manager.cluster_modified|listener_manager.listener_modified")
        else:
            at.envoys[0].belongs_to(relay)
        poll(lambda relay=relay: relay.status["state"] == "open", what="the stream")  # type: ignore[misc]
        if protocol is XdsProtocol.DELTA:
            first = at.plane.journal.requests(CLUSTER, Kind.FIRST)[-1]
            assert set(first.initial.values()) == before
        memory = at.stop(relay)
        before = versions_in(memory, CLUSTER)
        assert at.serves()
    assert at.envoys[0].stats("cluster_manager.cluster_modified|listener_manager.listener_modified") == modified


@pytest.mark.parametrize("at", ["2.14"], indirect=True)
def test_the_file_of_an_earlier_kumadp_begins_a_stream_of_delta(at: RelayStage, tmp_path: Path) -> None:
    """What was removed in between a new Envoy loses too, and only what differs is sent."""
    with Http2Server("former") as former:
        sotw = begin(at, XdsProtocol.SOTW)
        serving(at, sotw)
        mesh = at.plane.mesh(NODE)
        mesh.outbound(at.ports.probes, "former", ("127.0.0.1", former.port), http2=True)
        poll(lambda: get(at.ports.probes) == (200, "former"), what="the listener that will be removed")
        settled(at)
        memory = earlier_memory(tmp_path / FILE, at.stop(sotw))
        at.envoys[0].kill()
        poll(lambda: at.plane.streams() == [], what="the end of the stream at the control plane")
        mesh.remove(LISTENER, f"outbound:127.0.0.1:{at.ports.probes}")
        del mesh.services["former"]
        mesh.remove(CLUSTER, "former")
        relay = begin(at, snapshot=memory, withhold_secrets=True, drain_time=0.0)
        at.envoy(relay, 1).wait_live()
        at.wait_traffic()
        poll(lambda: "former" not in at.envoys[1].dump(), what="nothing left of what was removed")
    assert get(at.ports.probes)[0] == 0
    settled(at)
    journal = at.plane.journal
    stream = journal.events(What.OPENED)[-1].stream
    for kind, removed in ((CLUSTER, "former"), (LISTENER, f"outbound:127.0.0.1:{at.ports.probes}")):
        (first,) = (entry for entry in journal.requests(kind, Kind.FIRST) if entry.stream == stream)
        assert set(first.initial.values()) == versions_in(memory, kind)
        answers = [entry for entry in journal.responses(kind) if entry.stream == stream]
        assert [(entry.names, entry.removed) for entry in answers] == [((), (removed,))]
    assert journal.requests(kind=Kind.NACK) == []


def test_two_epochs_have_one_stream_and_one_answer(at: RelayStage) -> None:
    relay = begin(at)
    serving(at, relay)
    at.envoy(relay, 1).wait_live()
    with Http2Server("other") as other:
        accepted = {view["type"]: view["accepted"] for view in relay.status["types"]}
        at.plane.mesh(NODE).outbound(at.ports.probes, "other", ("127.0.0.1", other.port), http2=True)
        poll(
            lambda: all(view["accepted"] != accepted[view["type"]] for view in relay.status["types"]),
            what="the change accepted",
        )
    settled(at)
    journal = at.plane.journal
    nonces = [entry.nonce for entry in journal.requests() if entry.nonce]
    assert len(nonces) == len(set(nonces))
    assert len(journal.events(What.OPENED)) == 1
    assert at.serves()


def test_secrets_reach_envoy_are_rotated_and_survive_its_death(at: RelayStage) -> None:
    mesh = at.plane.mesh(NODE)
    mesh.use_mtls(trustme.CA(), "web.mesh")
    mesh.inbound(at.ports.inbound, at.app.port)
    mesh.outbound(at.ports.outbound, "backend", ("127.0.0.1", at.ports.inbound))
    relay = begin(at)
    at.envoy(relay).wait_live()
    at.wait_traffic()
    relay.wait_accepted(*MESH, SECRET)
    accepted = next(view["accepted"] for view in relay.status["types"] if view["type"] == SECRET)
    mesh.rotate("web.mesh")
    poll(
        lambda: next(view["accepted"] for view in relay.status["types"] if view["type"] == SECRET) != accepted,
        what="the new certificate",
    )
    at.plane.gone()
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    assert at.plane.journal.requests(kind=Kind.NACK) == []


def test_health_reports_pass(at: RelayStage) -> None:
    relay = begin(at)
    at.envoy(relay).wait_live()
    poll(lambda: at.plane.journal.reports(), what="a report", deadline=40)
