"""The relay between a real Envoy and control planes of each version: the protocol it chooses, and its Delta."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.support.daemon import get
from tests.support.http2 import Http2Server
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, RunningRelay, stage
from tests.support.xds.delta import version_of
from tests.support.xds.journal import Kind, What
from tests.support.xds.mesh import UNIFIED_IDENTITY
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.relay_stage import RelayedEnvoy
    from tests.support.xds.resources import Tree

pytestmark = pytest.mark.process

TYPES = (CLUSTER, ENDPOINTS, LISTENER)
# The service's cluster, and its listener.
BACKEND = "kri_msvc_default_default__backend_80"


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "3.0"))


@pytest.fixture
def at(tmp_path: Path, version: str) -> Iterator[RelayStage]:
    with stage(tmp_path, uvloop.new_event_loop, version=version) as made:
        made.plane.faults.linger = 0.2
        yield made


def on(*versions: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("version", versions, indirect=True)


def names_protocol(at: RelayStage, api_type: str) -> None:
    """Have the bootstrap name this protocol, whatever the control plane speaks."""

    def change(tree: Tree) -> None:
        tree["dynamicResources"]["adsConfig"]["apiType"] = api_type

    at.plane.edit = change


def serving(at: RelayStage) -> tuple[RunningRelay, RelayedEnvoy]:
    """Start relay and Envoy, and wait until the control plane has all answers."""
    relay = at.relay()
    envoy = at.envoy(relay)
    envoy.wait_live()
    at.wait_traffic()
    poll(lambda: acknowledged(at) >= set(TYPES), what="all answers at the control plane")
    return relay, envoy


def acknowledged(at: RelayStage) -> set[str]:
    (stream,) = at.plane.streams(NODE)
    return {entry.type_url for entry in at.plane.journal.requests(kind=Kind.ACK, stream=stream)}


def another_stream(at: RelayStage, end: Callable[[], None]) -> int:
    """End the stream; return the number of the next one that serves the node."""
    (old,) = at.plane.streams(NODE)
    end()
    poll(lambda: at.plane.stream(NODE) not in {"", str(old)}, what="another stream")
    return int(at.plane.stream(NODE))


def updates(envoy: RelayedEnvoy) -> dict[str, Any]:
    """How often Envoy has taken an update."""
    return {name: count for name, count in envoy.stats(".*update_success").items() if "runtime" not in name}


@on("2.8", "2.13", "2.14", "3.0")
def test_the_protocol_of_the_bootstrap_is_spoken(at: RelayStage, version: str) -> None:
    relay, _envoy = serving(at)
    journal = at.plane.journal
    requests = journal.requests()
    assert {entry.delta for entry in requests} == {version == "3.0"}
    assert relay.status["protocol"] == ("delta" if version == "3.0" else "sotw")
    assert len(journal.events(What.OPENED)) == 1
    assert journal.requests(kind=Kind.NACK) == []
    assert all("feature-delta-grpc" not in request["features"] for request in at.plane.bootstrap_requests)
    if version == "3.0":
        assert all(entry.has_node for entry in requests)
        assert all(entry.initial == {} for entry in requests)


@on("2.13", "2.14")
def test_delta_is_understood_by_earlier_versions_too(at: RelayStage) -> None:
    """2.13 ends the stream at a request without Node."""
    names_protocol(at, "DELTA_GRPC")
    at.use_bootstrap()
    serving(at)
    with Http2Server("other") as other:
        at.plane.mesh(NODE).endpoints["backend"] = [("127.0.0.1", other.port)]
        at.plane.wake()
        at.plane.mesh(NODE).apply()
        poll(lambda: get(at.ports.outbound) == (200, "other"), what="a change")
    assert {entry.delta for entry in at.plane.journal.requests()} == {True}
    assert at.plane.journal.events(What.ENDED) == []


def test_a_new_stream_names_what_envoy_has_and_nothing_reaches_envoy(at: RelayStage) -> None:
    _relay, envoy = serving(at)
    before = updates(envoy)
    stream = another_stream(at, at.plane.end_streams)
    poll(lambda: acknowledged(at) >= set(TYPES), what="answers to what is equal")
    served = at.plane.mesh(NODE).encoded({"backend": [("127.0.0.1", at.ports.inbound)]})
    first = {entry.type_url: entry for entry in at.plane.journal.requests(kind=Kind.FIRST, stream=stream)}
    for kind in TYPES:
        assert first[kind].initial == {name: version_of(resource) for name, resource in served[kind].items()}
    answers = {entry.type_url: set(entry.names) for entry in at.plane.journal.responses(stream=stream)}
    # This version sends all endpoints again, whatever it is that a new stream names.
    assert answers == {CLUSTER: set(), ENDPOINTS: {BACKEND}, LISTENER: set()}
    assert updates(envoy) == before
    assert at.plane.journal.requests(kind=Kind.NACK) == []


def test_changes_and_removals_reach_envoy(at: RelayStage) -> None:
    serving(at)
    mesh = at.plane.mesh(NODE)
    with Http2Server("other") as other:
        mesh.outbound(at.ports.probes, "other", ("127.0.0.1", other.port), http2=True)
        poll(lambda: get(at.ports.probes) == (200, "other"), what="a new listener and cluster")
        mesh.remove(LISTENER, f"outbound:127.0.0.1:{at.ports.probes}")
        poll(lambda: get(at.ports.probes)[0] == 0, what="the listener gone")
        assert at.serves()
    removals = [entry.removed for entry in at.plane.journal.responses(LISTENER)]
    assert removals[-1] == (f"outbound:127.0.0.1:{at.ports.probes}",)
    assert at.plane.journal.requests(kind=Kind.NACK) == []


@on("3.0 unimplemented")
def test_what_is_unimplemented_is_replaced_at_once(at: RelayStage) -> None:
    names_protocol(at, "GRPC")
    at.use_bootstrap()
    relay, _envoy = serving(at)
    assert relay.status["protocol"] == "delta"
    assert len(at.plane.journal.events(What.UNIMPLEMENTED)) == 1
    # Remembered: the next stream tries nothing that is not implemented, though the bootstrap still names it.
    another_stream(at, at.plane.end_streams)
    poll(lambda: acknowledged(at) >= set(TYPES), what="answers")
    assert len(at.plane.journal.events(What.UNIMPLEMENTED)) == 1


@on("2.8", "3.0")
def test_a_silent_stream_of_the_wrong_protocol_is_replaced_once_the_bootstrap_names_the_other(
    at: RelayStage, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("kumadp.relay.first_response.SILENT_AFTER", 0.2)
    wrong, right = ("sotw", "delta") if version == "3.0" else ("delta", "sotw")
    names_protocol(at, "GRPC" if version == "3.0" else "DELTA_GRPC")
    at.use_bootstrap()
    relay = at.relay()
    journal = at.plane.journal
    requested = len(at.plane.bootstrap_requests)
    poll(lambda: len(at.plane.bootstrap_requests) >= requested + 2, what="a bootstrap that is requested again")
    # It names the same: the stream stays, however silent.
    assert relay.status["protocol"] == wrong
    assert len(journal.events(What.UNSERVED)) == 1
    at.plane.edit = lambda _tree: None
    at.envoy(relay).wait_live()
    at.wait_traffic()
    assert relay.status["protocol"] == right
    assert len(journal.events(What.UNSERVED)) == 1
    assert len(journal.events(What.OPENED)) == 2


def test_the_right_stream_is_never_closed_for_its_silence(at: RelayStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.relay.first_response.SILENT_AFTER", 0.1)
    at.plane.faults.silent = True
    relay = at.relay()
    requested = len(at.plane.bootstrap_requests)
    poll(lambda: len(at.plane.bootstrap_requests) >= requested + 3, what="the bootstrap, requested again")
    at.plane.faults.silent = False
    at.plane.wake()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    assert len(at.plane.journal.events(What.OPENED)) == 1
    assert at.plane.journal.events(What.CLOSED) == []


@on("2.14")
def test_no_alarm_for_types_that_are_known(
    at: RelayStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """2.14 does not answer a request for endpoints that have not changed."""
    names_protocol(at, "DELTA_GRPC")
    at.use_bootstrap()
    relay, envoy = serving(at)
    before = updates(envoy)
    monkeypatch.setattr("kumadp.relay.unanswered.SILENCE", 0.2)
    stream = another_stream(at, at.plane.end_streams)
    poll(lambda: acknowledged(at) >= {CLUSTER, LISTENER}, what="answers to what is equal")
    assert at.plane.journal.requests(ENDPOINTS, stream=stream)
    assert at.plane.journal.responses(ENDPOINTS, stream=stream) == []
    opened = at.plane.journal.events(What.OPENED)[-1]
    poll(lambda: time.monotonic() > opened.at + 0.6, what="an alarm that does not come")
    assert relay.status["silence"] == 0
    assert updates(envoy) == before
    assert "has not answered" not in caplog.text


def test_secrets_that_are_removed_stay(at: RelayStage) -> None:
    at.plane.use_mtls()
    serving(at)
    mesh = at.plane.mesh(NODE)
    identity = mesh.trees[SECRET][UNIFIED_IDENTITY]
    mesh.remove(SECRET, UNIFIED_IDENTITY)
    removal = poll(lambda: [e for e in at.plane.journal.responses(SECRET) if e.removed], what="a removal")[0]
    poll(
        lambda: [e for e in at.plane.journal.requests(SECRET, Kind.ACK) if e.nonce == removal.nonce],
        what="the answer to it",
    )
    # Another Envoy needs it too.
    relay = at.relays[0]
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    mesh.put(SECRET, identity)
    mesh.rotate("web.mesh")
    newest = poll(lambda: [e for e in at.plane.journal.responses(SECRET) if UNIFIED_IDENTITY in e.names], what="it")
    poll(
        lambda: [e for e in at.plane.journal.requests(SECRET, Kind.ACK) if e.nonce == newest[-1].nonce],
        what="the new one taken",
    )
    at.wait_traffic()


@on("2.14")
def test_one_envoy_and_one_relay_through_an_upgrade_and_back(at: RelayStage) -> None:
    at.suit_all()
    relay, envoy = serving(at)
    pid = envoy.pid
    for version, protocol in (("3.0", "delta"), ("2.14", "sotw"), ("2.8", "sotw"), ("3.0 unimplemented", "delta")):
        with contextlib.suppress(OSError):
            at.plane.upgrade(version)
        poll(lambda: at.plane.registered == [NODE], what="a registration")
        poll(lambda: at.plane.streams(NODE) and acknowledged(at) >= {CLUSTER, LISTENER}, what="answers")
        at.wait_traffic()
        assert relay.status["protocol"] == protocol
        assert envoy.pid == pid
        assert at.plane.journal.requests(kind=Kind.NACK) == []
